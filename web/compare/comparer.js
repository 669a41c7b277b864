// One comparison: what is on show, how it is shown, and the parts that draw and listen.
import { Controls } from "./controls.js";
import { FullScreen } from "./dialog.js";
import { addStyle, make } from "./dom.js";
import { draw, MODES, panes } from "./draw.js";
import { HeatMap, RANGES } from "./heat.js";
import { press } from "./keys.js";
import { Gallery, Gone } from "./pictures.js";
import { listen } from "./pointer.js";
import { View } from "./view.js";

const EMPTY = "Run the workflow to compare two images.";
const GONE = "The images of the last run are no longer in ComfyUI's temp folder: run the workflow again.";
const RATES = [1, 2, 3, 0]; // changes per second; more than three can harm people with photosensitive epilepsy
const ZOOM_STEP = 1.25;
const LARGEST_CANVAS = 8192;

export class Comparer {
  /** `api`: ComfyUI's. `outer`: see pointer.js. `remember(mode)`: called when the user picks a mode. */
  constructor({ api, outer, remember }) {
    addStyle();
    Object.assign(this, { gallery: new Gallery(api), remember, view: new View(), heat: new HeatMap() });
    Object.assign(this, { data: null, number: 0, pictures: null, message: EMPTY, turn: 0, closed: true });
    Object.assign(this, { mode: MODES[0], wipe: 0.5, flipped: false, range: RANGES[0], pointer: null, density: 1 });
    this.areas = [{ left: 0, top: 0, width: 1, height: 1 }];
    this.rate = window.matchMedia("(prefers-reduced-motion: reduce)").matches ? 0 : RATES[0];
    this.act = this.makeActions();
    this.build(outer);
  }

  /** Begin to watch and draw; until then, and after close, nothing is held. */
  open() {
    this.closed = false;
    this.observer.observe(this.stage);
    this.time();
    this.changed();
  }

  build(outer) {
    this.controls = new Controls(this.act);
    this.canvas = make("canvas", { className: "eam-compare-canvas", role: "img" });
    this.stage = make("div", { className: "eam-compare-stage", children: [this.canvas, ...this.controls.overlays] });
    const parts = [this.controls.top, this.stage, this.controls.bottom];
    const names = { role: "group", "aria-label": "Image comparison", tabindex: "0" };
    this.panel = make("div", { className: "eam-compare-panel", ...names, children: parts });
    this.element = make("div", { className: "eam-compare widget-expands", children: [this.panel] });
    this.fullScreen = new FullScreen(this.panel, this.element, (full) => {
      stop();
      this.controls.setFull(full);
      this.measure();
    });
    const inFull = () => this.fullScreen.open;
    const stop = listen(this.stage, this.canvas, this, { leaves: (event) => !inFull() && outer.leaves(event) });
    this.panel.addEventListener("keydown", (event) => {
      if (!press(event, this.act, this.panel)) return;
      event.preventDefault();
      event.stopPropagation();
    });
    this.panel.addEventListener("pointerdown", (event) => {
      if (event.target.closest("button") && event.button === 0) event.stopPropagation(); // or the node is dragged
    });
    // Wheel outside the picture and the middle button belong to the graph.
    const toGraph = (event) => !inFull() && !event.target.closest(".eam-compare-help"); // the list of keys scrolls
    this.panel.addEventListener("wheel", (event) => toGraph(event) && outer.wheel(event), { passive: false });
    for (const name of ["pointerdown", "pointermove", "pointerup"]) {
      this.panel.addEventListener(name, (event) => !inFull() && outer.middle(event));
    }
    this.observer = new ResizeObserver(() => this.measure());
  }

  /** What buttons and keys do; false tells that it did nothing. */
  makeActions() {
    const zoomBy = (factor) => this.look((view) => view.zoomTo(view.zoom * factor));
    return {
      mode: (mode) => {
        this.setMode(mode);
        this.remember(mode);
      },
      fit: () => this.look((view) => view.fit()),
      actual: (zoom) => this.look((view) => view.zoomTo(typeof zoom === "number" ? zoom : 1)),
      zoomIn: () => zoomBy(ZOOM_STEP),
      zoomOut: () => zoomBy(1 / ZOOM_STEP),
      pan: (x, y) => this.look((view) => view.panBy(x * view.pane.width, y * view.pane.height)),
      moveLine: (by) => this.ready && this.mode === "wipe" && this.setLine(this.wipe + by),
      flip: () => this.flip(),
      adjust: () => this.adjust(),
      next: () => this.step(1),
      previous: () => this.step(-1),
      help: () => this.controls.toggleHelp(),
      full: () => (this.fullScreen.open ? this.fullScreen.leave() : this.fullScreen.enter()),
      escape: () => this.escape(),
    };
  }

  escape() {
    const helping = !this.controls.help.hidden;
    if (helping) this.controls.toggleHelp(false);
    else if (this.fullScreen.open) this.fullScreen.leave();
    else return false;
    return true;
  }

  get ready() {
    return this.pictures !== null && !this.message;
  }

  get pair() {
    return this.data?.pairs[this.number] ?? null;
  }

  /** Show a run: {a, b: references of pictures, pairs}. Null empties. */
  async show(data) {
    this.data = data;
    this.number = Math.min(this.number, Math.max(0, (data?.pairs.length ?? 0) - 1));
    await this.load();
  }

  async load() {
    this.turn += 1;
    this.loading?.abort();
    if (this.closed) return undefined;
    this.loading = new AbortController();
    const { turn, pair } = this;
    const { signal } = this.loading;
    const late = () => turn !== this.turn;
    if (!pair) return this.finish(null, EMPTY);
    this.element.setAttribute("aria-busy", "true");
    if (!this.pictures) this.finish(null, "Loading …");
    try {
      const wanted = [this.data.a[pair.a], this.data.b[pair.b]];
      const { pictures, keep, drop } = await this.gallery.load(wanted, signal);
      if (late()) return drop();
      keep();
      return this.finish(pictures, "");
    } catch (error) {
      if (late()) return undefined;
      return this.finish(null, error instanceof Gone ? GONE : `The images cannot be shown: ${error.message}.`);
    }
  }

  finish(pictures, message) {
    Object.assign(this, { pictures, message });
    this.element.setAttribute("aria-busy", String(message === "Loading …"));
    if (!pictures && message !== "Loading …") this.gallery.keep([]);
    if (pictures) {
      const [before, after] = pictures;
      const larger = before.width * before.height > after.width * after.height ? before : after;
      this.view.setPicture(larger.width, larger.height);
    }
    this.measure();
  }

  setMode(mode) {
    if (!MODES.includes(mode)) return;
    Object.assign(this, { mode, flipped: false, pointer: null });
    this.measure();
    this.time();
  }

  setLine(share) {
    this.wipe = Math.min(Math.max(share, 0), 1);
    this.changed();
    return true;
  }

  look(change) {
    if (!this.ready) return false;
    change(this.view);
    this.changed();
    return true;
  }

  step(by) {
    const total = this.data?.pairs.length ?? 0;
    if (total < 2) return false;
    this.number = (this.number + by + total) % total;
    this.load();
    return true;
  }

  flip() {
    if (this.mode !== "flicker" || !this.ready) return false;
    Object.assign(this, { rate: 0, flipped: !this.flipped });
    this.time();
    this.changed();
    return true;
  }

  adjust() {
    if (!this.ready || !["flicker", "difference"].includes(this.mode)) return false;
    const after = (list, value) => list[(list.indexOf(value) + 1) % list.length];
    if (this.mode === "flicker") this.rate = after(RATES, this.rate);
    if (this.mode === "difference") this.range = after(RANGES, this.range);
    this.time();
    this.changed();
    return true;
  }

  /** Run the flicker's clock while it is needed. */
  time() {
    clearInterval(this.clock);
    if (this.mode !== "flicker" || !this.rate || this.closed) return;
    this.clock = setInterval(() => {
      if (!this.ready || document.hidden || !this.stage.isConnected) return;
      this.flipped = !this.flipped;
      this.changed();
    }, 1000 / this.rate);
  }

  // What the pointer does, in device pixels of the canvas.

  paneAt({ x, y }) {
    const index = this.areas.findIndex(({ left, top, width, height }) => x < left + width && y < top + height);
    const pane = index < 0 ? this.areas.length - 1 : index;
    return { pane, area: this.areas[pane] };
  }

  hover(point) {
    if (this.mode === "wipe" && point) this.wipeTo(point);
    if (this.mode !== "side") return;
    const { pane, area } = point ? this.paneAt(point) : {};
    this.pointer = point ? { pane, x: point.x - area.left, y: point.y - area.top } : null;
    this.changed();
  }

  wipeTo(point) {
    this.setLine(point.x / this.canvas.width);
  }

  toggleFit(point) {
    if (this.view.fitted) this.view.zoomTo(Math.max(1, 2 * this.view.zoom), point);
    else this.view.fit();
    this.changed();
  }

  /** Fit the canvas to the pixels that it really covers, whatever the graph's zoom. */
  measure() {
    const [width, height] = [this.stage.clientWidth, this.stage.clientHeight];
    const box = this.stage.getBoundingClientRect();
    if (!width || !height || !box.width) return this.changed();
    const most = LARGEST_CANVAS / Math.max(width, height);
    const density = Math.min(((window.devicePixelRatio || 1) * box.width) / width, most);
    const size = { width: Math.max(1, Math.round(width * density)), height: Math.max(1, Math.round(height * density)) };
    if (this.canvas.width !== size.width || this.canvas.height !== size.height) Object.assign(this.canvas, size);
    this.areas = panes(this.mode, this.canvas, this.view.picture, density);
    this.view.setPane(this.areas[0].width, this.areas[0].height, density / this.density);
    this.density = density;
    return this.changed();
  }

  /** Draw before the next frame; many changes make one drawing. */
  changed() {
    if (this.waiting || this.closed) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = 0;
      this.render();
    });
  }

  render() {
    const { mode, pair, ready, number, message, flipped, rate, range, density, canvas } = this;
    const areas = Object.assign([...this.areas], { width: canvas.width, height: canvas.height });
    const percent = this.view.zoom < 0.1 ? (100 * this.view.zoom).toFixed(1) : Math.round(100 * this.view.zoom);
    const total = this.data?.pairs.length ?? 0;
    this.controls.show({ mode, pair, ready, number, message, flipped, rate, range, percent, total, areas });
    if (ready) draw({ ...this, areas, density });
    else canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
    canvas.setAttribute("aria-label", this.description());
  }

  description() {
    if (!this.ready) return this.message;
    const [a, b] = this.pair.labels;
    if (this.mode === "wipe") return `${a} left of the line, ${b} right of it`;
    if (this.mode === "side") return `${a} and ${b}`;
    return this.mode === "flicker" ? `${this.flipped ? b : a}` : `Difference of ${a} and ${b}`;
  }

  close() {
    this.turn += 1;
    this.loading?.abort();
    Object.assign(this, { closed: true, pictures: null, message: EMPTY });
    this.fullScreen.drop();
    clearInterval(this.clock);
    cancelAnimationFrame(this.waiting);
    this.waiting = 0;
    this.observer.disconnect();
    this.gallery.keep([]);
  }
}
