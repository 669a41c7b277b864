// EAM Compare: two images in the node and full screen. Ties the comparison of compare/ to ComfyUI's nodes.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { Comparer } from "./compare/comparer.js";
import { guardTouches } from "./compare/pointer.js";
import { fromOutput, fromProperties, MODE, RUN } from "./compare/saved.js";

const NODE = "EAM_Compare";
const SMALLEST = [340, 300];
const comparers = new Set();
let lastScale = 0;

// In Nodes 2.0 events rise through the node, which hands the graph what is the graph's; in the classic canvas the
// widget lies above the graph's canvas, and nothing rises.
const isClassic = () => !globalThis.LiteGraph?.vueNodesMode;

const outer = {
  leaves: () => Boolean(app.canvas?.read_only), // space is held: the graph is panned
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

function after(node, name, then) {
  const before = node[name];
  node[name] = function (...given) {
    const result = before?.apply(this, given);
    then(...given);
    return result;
  };
}

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
  comparers.add(comparer);
  after(node, "onRemoved", () => {
    comparers.delete(comparer);
    comparer.close();
  });
  node.setSize([Math.max(node.size[0], SMALLEST[0] + 80), Math.max(node.size[1], SMALLEST[1] + 160)]);
  return comparer;
}

// A zoom of the graph reaches the widget as a CSS transform, of which no observer tells.
function watchScale() {
  const scale = app.canvas.ds.scale;
  if (scale === lastScale) return;
  lastScale = scale;
  requestAnimationFrame(() => comparers.forEach((comparer) => comparer.measure()));
}

app.registerExtension({
  name: "EAM.Compare",
  setup() {
    guardTouches(".eam-compare-stage");
    after(app.canvas, "onDrawForeground", watchScale);
  },
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    const comparer = addComparer(node);
    after(node, "onExecuted", (output) => {
      const run = fromOutput(output);
      if (!run) return;
      node.properties[RUN] = run;
      comparer.show(run);
    });
    after(node, "onConfigure", () => {
      comparer.setMode(node.properties?.[MODE]);
      comparer.show(fromProperties(node.properties));
    });
  },
});
