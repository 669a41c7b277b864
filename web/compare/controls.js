// The bars above and below the picture, the names on it, the legend and the list of keys.
import { button, icon, make, say } from "./dom.js";
import { GRADIENT } from "./heat.js";
import { KEYS } from "./keys.js";

const NAMES = { wipe: "Wipe", side: "Side by side", flicker: "Flicker", difference: "Difference" };
const LETTERS = { wipe: "W", side: "S", flicker: "F", difference: "D" };

const sizeText = ([width, height]) => `${width} × ${height}`;

export function figuresText({ equal, psnr, ssim }) {
  if (equal) return "The images are equal";
  const parts = [];
  if (Number.isFinite(psnr)) parts.push(`PSNR ${psnr.toFixed(2)} dB`);
  if (Number.isFinite(ssim)) parts.push(`SSIM ${ssim.toFixed(4)}`);
  return parts.join("  ·  ");
}

export class Controls {
  /** `act`: what the buttons do: mode(name), fit, actual, zoomIn, zoomOut, full, previous, next, adjust. */
  constructor(act) {
    this.modes = Object.keys(NAMES).map((mode) => {
      const made = button(NAMES[mode], LETTERS[mode], { className: "eam-compare-mode" }, () => act.mode(mode));
      made.dataset.mode = mode;
      return made;
    });
    this.full = button("Full screen", "Enter", { shape: "enter" }, act.full);
    this.helpButton = button("Keys", "?", { text: "?" }, () => this.toggleHelp());
    const names = { role: "group", "aria-label": "View" };
    const group = make("div", { className: "eam-compare-modes", ...names, children: this.modes });
    const right = make("div", { className: "eam-compare-group", children: [this.helpButton, this.full] });
    this.top = make("div", { className: "eam-compare-bar", children: [group, right] });
    this.makeBottom(act);
    this.makeOverlays(act);
  }

  makeBottom(act) {
    this.figures = make("div", { className: "eam-compare-figures", role: "status" });
    this.note = make("div", { className: "eam-compare-note" });
    this.count = make("span", { className: "eam-compare-count" });
    this.batch = make("div", {
      className: "eam-compare-group",
      role: "group",
      "aria-label": "Images of the batch",
      children: [
        button("Previous image", "P", { shape: "previous" }, act.previous),
        this.count,
        button("Next image", "N", { shape: "next" }, act.next),
      ],
    });
    this.zoom = make("span", { className: "eam-compare-count eam-compare-zoom" });
    const zooms = make("div", {
      className: "eam-compare-group eam-compare-zooms",
      role: "group",
      "aria-label": "Zoom",
      children: [
        button("Zoom out", "−", { text: "−" }, act.zoomOut),
        this.zoom,
        button("Zoom in", "+", { text: "+" }, act.zoomIn),
        button("Fit", "0", {}, act.fit),
        button("One to one", "1", { text: "1:1" }, act.actual),
      ],
    });
    const line = make("div", { className: "eam-compare-bar", children: [this.figures, this.batch, zooms] });
    this.bottom = make("div", { className: "eam-compare-bottom", children: [line, this.note] });
  }

  makeOverlays(act) {
    const tag = (side) => {
      const parts = [make("span", { className: "eam-compare-name" }), make("span", { className: "eam-compare-size" })];
      return make("div", { className: `eam-compare-tag eam-compare-tag-${side}`, children: parts });
    };
    this.tags = ["before", "after"].map(tag);
    this.message = make("div", { className: "eam-compare-message", role: "status" });
    this.scale = make("span", { className: "eam-compare-scale", "aria-hidden": "true" });
    this.scale.style.background = GRADIENT;
    this.most = make("span");
    this.adjust = button("", "", { className: "eam-compare-adjust" }, act.adjust);
    const scale = [make("span", { text: "0" }), this.scale, this.most];
    this.legend = make("div", { className: "eam-compare-legend", children: scale });
    this.setting = make("div", { className: "eam-compare-setting", children: [this.legend, this.adjust] });
    const rows = KEYS.map(([keys, does]) => [make("dt", { text: keys }), make("dd", { text: does })]).flat();
    this.help = make("dl", { className: "eam-compare-help", "data-capture-wheel": "true", children: rows });
    this.help.hidden = true;
    this.overlays = [...this.tags, this.setting, this.message, this.help];
  }

  toggleHelp(open = this.help.hidden) {
    this.help.hidden = !open;
    this.helpButton.setAttribute("aria-expanded", String(open));
  }

  setFull(full) {
    const name = full ? "Leave full screen" : "Full screen";
    this.full.setAttribute("aria-label", name);
    this.full.title = full ? `${name} (Esc)` : `${name} (Enter)`;
    this.full.replaceChildren(icon(full ? "leave" : "enter"));
  }

  /** Show `state`: mode, pair, number, total, message, percent, flipped, rate, range, areas, density. */
  show(state) {
    for (const made of this.modes) made.setAttribute("aria-pressed", String(made.dataset.mode === state.mode));
    const { pair } = state;
    say(this.message, state.message);
    this.message.hidden = !state.message;
    say(this.figures, pair ? figuresText(pair) : "");
    say(this.note, pair?.note ?? "");
    this.note.hidden = !pair?.note;
    this.batch.hidden = state.total < 2;
    say(this.count, `${state.number + 1} / ${state.total}`);
    say(this.zoom, state.ready ? `${state.percent} %` : "");
    this.showTags(state);
    this.showSetting(state);
  }

  showTags({ ready, mode, pair, flipped, areas }) {
    const sizes = pair ? [pair.a_size, pair.b_size] : [];
    this.tags.forEach((tag, number) => {
      tag.hidden = !ready || (mode === "flicker" && Number(flipped) !== number);
      const texts = tag.hidden ? [] : [pair.labels[number], sizeText(sizes[number])];
      texts.forEach((text, part) => say(tag.children[part], text));
      const second = (mode === "side" && number === 1 && areas[1]) || { left: 0, top: 0 };
      // Two panes above each other: the second name stands at the top of its own pane.
      tag.style.top = `calc(${(100 * second.top) / (areas.height || 1)}% + 6px)`;
      tag.classList.toggle("eam-compare-left", mode === "flicker" || (mode === "side" && second.left === 0));
      tag.style.left = mode === "side" && second.left > 0 ? `calc(${(100 * second.left) / areas.width}% + 6px)` : "";
      tag.style.right = mode === "side" && second.left > 0 ? "auto" : "";
    });
  }

  showSetting({ ready, mode, rate, range }) {
    this.setting.hidden = !ready || !["flicker", "difference"].includes(mode);
    this.legend.hidden = mode !== "difference";
    say(this.most, range < 255 ? `${range}+ of 255` : "255");
    const text = mode === "flicker" ? (rate ? `${rate} per second` : "by hand: click or Space") : "Range";
    const name = mode === "flicker" ? `Changes: ${text}; change the rate` : `Range ${range} of 255; change it`;
    say(this.adjust, text);
    this.adjust.setAttribute("aria-label", name);
    this.adjust.title = `${name} (R)`;
  }
}
