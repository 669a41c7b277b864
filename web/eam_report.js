// EAM Report: shows the text of the last run in the node, also after a saved workflow was loaded again.
import { app } from "../../scripts/app.js";
import { keepRuns } from "./last_run.js";

const NODE = "EAM_Report";
const SHOWN = "report";
const SAVED = "eam_report"; // property of the node, saved with the workflow
const MIN_SIZE = [380, 300];

function show(node, text) {
  const shown = node.widgets?.find((widget) => widget.name === SHOWN);
  if (shown) {
    shown.value = text;
    shown.callback?.(text); // Nodes 2.0 hears of changes only through it
  }
  node.setDirtyCanvas?.(true, true);
}

// Behind the widgets of the schema and never saved or sent: positions of saved values stay as they are.
function addField(node) {
  const { widget } = app.widgets.STRING(node, SHOWN, ["STRING", { multiline: true }], app);
  widget.serialize = false;
  Object.assign(widget.options, { serialize: false, read_only: true });
  const area = widget.element ?? widget.inputEl;
  if (area) {
    area.readOnly = true;
    area.placeholder = "the report of the last run";
  }
  node.setSize?.(MIN_SIZE.map((least, axis) => Math.max(least, node.size[axis])));
}

function after(node, name, then) {
  const before = node[name];
  node[name] = function (...given) {
    const result = before?.apply(this, given);
    then(...given);
    return result;
  };
}

keepRuns(NODE, {
  property: SAVED,
  read: (output) => (Array.isArray(output.text) ? output.text.join("\n") : null),
  show,
});

app.registerExtension({
  name: "EAM.Report",
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    addField(node);
    after(node, "onConfigure", () => {
      const text = node.properties?.[SAVED];
      if (typeof text === "string") show(node, text);
    });
  },
});
