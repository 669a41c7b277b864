// EAM Compare: two images in the node and full screen. Ties the comparison of compare/ to ComfyUI's nodes.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { Comparer } from "./compare/comparer.js";
import { guardTouches } from "./compare/pointer.js";
import { fromOutput, fromProperties, MODE, RUN } from "./compare/saved.js";
import { after } from "./hooks.js";
import { keepRuns } from "./last_run.js";

const NODE = "EAM_Compare";
const SMALLEST = [340, 300];
const comparerOf = new WeakMap(); // by node
const comparers = new Set(); // of nodes in a graph
let lastScale = 0;
let spaceHeld = false;

// In Nodes 2.0 events rise through the node, which hands the graph what is the graph's; in the classic canvas the
// widget lies above the graph's canvas, and nothing rises.
const isClassic = () => !globalThis.LiteGraph?.vueNodesMode;

const outer = {
  leaves: () => spaceHeld && Boolean(app.canvas?.read_only), // the graph is panned; a locked one is read-only as well
  wheel(event) {
    if (!isClassic()) return;
    event.preventDefault();
    app.canvas.processMouseWheel(event);
  },
  middle(event) {
    if (!isClassic()) return;
    if (event.type === "pointermove") {
      if (event.buttons & 4) app.canvas.processMouseMove(event);
    } else if (event.button === 1) {
      event.preventDefault();
      if (event.type === "pointerdown") app.canvas.processMouseDown(event);
      else app.canvas.processMouseUp(event);
    }
  },
};

function addComparer(node) {
  const remember = (mode) => {
    node.properties[MODE] = mode;
  };
  const comparer = new Comparer({ api, outer, remember });
  const widget = node.addDOMWidget("comparison", "eam_compare", comparer.element, {
    serialize: false,
    hideOnZoom: false,
    margin: 6,
    getMinHeight: () => SMALLEST[1],
  });
  widget.serialize = false;
  // A copy on the clipboard is a node that never joins a graph: nobody would close its pictures.
  after(node, "onAdded", () => {
    comparers.add(comparer);
    comparer.open();
    comparer.show(fromProperties(node.properties));
  });
  after(node, "onRemoved", () => {
    comparers.delete(comparer);
    comparer.close();
  });
  node.setSize([Math.max(node.size[0], SMALLEST[0] + 80), Math.max(node.size[1], SMALLEST[1] + 160)]);
  return comparer;
}

// ComfyUI makes widgets deaf on a canvas that is locked, as while space is held; looking is not changing.
function wake() {
  const awake = Boolean(app.canvas?.read_only) && !spaceHeld;
  for (const { element } of comparers) element.classList.toggle("eam-compare-awake", awake);
}

const measureAll = () => comparers.forEach((comparer) => comparer.measure());

// A zoom of the graph reaches the widget as a CSS transform, of which no observer tells.
function watchScale() {
  const scale = app.canvas.ds.scale * (window.devicePixelRatio || 1);
  if (scale === lastScale) return;
  lastScale = scale;
  requestAnimationFrame(measureAll);
}

// The zoom of the browser, or a window moved to another screen.
function watchDensity() {
  const now = window.matchMedia(`(resolution: ${window.devicePixelRatio || 1}dppx)`);
  now.addEventListener("change", () => [watchDensity(), measureAll()], { once: true });
}

function watchSpace() {
  const note = (event) => {
    if (event.key !== " ") return;
    spaceHeld = event.type === "keydown";
    wake();
  };
  for (const name of ["keydown", "keyup"]) window.addEventListener(name, note, true);
  window.addEventListener("blur", () => {
    spaceHeld = false;
  });
}

keepRuns(NODE, { property: RUN, read: fromOutput, show: (node, run) => comparerOf.get(node)?.show(run) });

app.registerExtension({
  name: "EAM.Compare",
  setup() {
    guardTouches(".eam-compare-stage");
    after(app.canvas, "onDrawForeground", () => [wake(), watchScale()]);
    window.addEventListener("resize", measureAll);
    watchDensity();
    watchSpace();
  },
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    const comparer = addComparer(node);
    comparerOf.set(node, comparer);
    after(node, "onConfigure", () => {
      comparer.setMode(node.properties?.[MODE]);
      if (comparers.has(comparer)) comparer.show(fromProperties(node.properties));
    });
  },
});
