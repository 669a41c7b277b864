// Folds away what a node's schema calls advanced, in front ends that know the word as a widget's option alone.
import { app } from "../../scripts/app.js";

const ROW = 20;
const NO_ROW = -4; // takes back the gap that is left for every widget

/** Fold a new node's advanced widgets; its context menu then offers to show them. */
function fold(node) {
  const folded = (node.widgets ?? []).filter((widget) => widget.options?.advanced && !widget.advanced);
  for (const widget of folded) {
    widget.advanced = true;
    widget.computeSize = (width) => [width ?? 0, node.showAdvanced ? ROW : NO_ROW];
  }
  if (folded.length) node.setSize([node.size[0], node.computeSize()[1]]);
}

app.registerExtension({
  name: "EAM.Advanced",
  nodeCreated(node) {
    if (node.comfyClass?.startsWith("EAM_")) fold(node);
  },
});
