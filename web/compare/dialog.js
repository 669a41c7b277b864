// Full screen: the panel moves into a modal dialog over the whole page, and back into its node afterwards.
import { make } from "./dom.js";

const isOpen = () => document.querySelector("dialog.eam-compare-dialog[open]") !== null;

/**
 * Keep undo and redo from the graph behind. ComfyUI hears keys on the window, before all others, but looks at them in
 * the next frame: by then this event says that no key is held with it.
 */
window.addEventListener("keydown", (event) => {
  if (!(event.ctrlKey || event.metaKey) || !["z", "y"].includes(event.key.toLowerCase()) || !isOpen()) return;
  for (const name of ["ctrlKey", "metaKey"]) Object.defineProperty(event, name, { value: false });
  event.preventDefault();
  event.stopImmediatePropagation();
}, true);

export class FullScreen {
  constructor(panel, home, changed) {
    Object.assign(this, { panel, home, changed, dialog: null });
  }

  get open() {
    return this.dialog !== null;
  }

  enter() {
    if (this.open) return;
    const dialog = make("dialog", { className: "eam-compare-dialog", "aria-label": "Image comparison" });
    // What is pressed or typed here must not reach the graph behind.
    for (const name of ["keydown", "keyup", "pointerdown", "pointerup", "mousedown", "mouseup", "paste", "copy"]) {
      dialog.addEventListener(name, (event) => event.stopPropagation());
    }
    dialog.addEventListener("close", () => this.closed());
    dialog.append(this.panel);
    document.body.append(dialog);
    this.dialog = dialog;
    dialog.showModal();
    this.panel.focus({ preventScroll: true });
    this.changed(true);
  }

  leave() {
    this.dialog?.close();
  }

  /** Put the panel back without a word, as its node is gone. */
  drop() {
    const { dialog } = this;
    this.dialog = null;
    if (!dialog) return;
    this.home.append(this.panel);
    dialog.close();
    dialog.remove();
  }

  closed() {
    if (!this.open) return;
    this.drop();
    this.changed(false);
    this.panel.focus({ preventScroll: true });
  }
}
