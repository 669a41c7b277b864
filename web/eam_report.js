// EAM Report: shows the text of the last run in the node.
import { app } from "../../scripts/app.js";
import { keepText } from "./shown_text.js";

const NODE = "EAM_Report";
const MIN_SIZE = [380, 300];

const addReport = keepText(NODE, {
  field: "report",
  property: "eam_report",
  placeholder: "the report of the last run",
  separator: "\n",
});

app.registerExtension({
  name: "EAM.Report",
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    addReport(node);
    node.setSize?.(MIN_SIZE.map((least, axis) => Math.max(least, node.size[axis])));
  },
});
