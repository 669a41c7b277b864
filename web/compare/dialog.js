// Full screen: the panel moves into a modal dialog over the whole page, and back into its node afterwards.
import { make } from "./dom.js";

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

  closed() {
    const { dialog } = this;
    this.dialog = null;
    if (!dialog) return;
    this.home.append(this.panel);
    dialog.remove();
    this.changed(false);
    this.panel.focus({ preventScroll: true });
  }
}
