// EAM Subject Caption: shows the caption that the last run used, and puts it into the caption field for editing.
import { app } from "../../scripts/app.js";
import { keepRuns } from "./last_run.js";

const NODE = "EAM_SubjectCaption";
const SHOWN = "used caption";
const BUTTON = "Edit this caption";
const SAVED = "eam_used_caption"; // property of the node, so a saved workflow still shows it

function widgetOf(node, name) {
  return node.widgets?.find((widget) => widget.name === name);
}

function setValue(widget, text) {
  widget.value = text;
  widget.callback?.(text); // Nodes 2.0 hears of changes only through it
}

function show(node, text) {
  const shown = widgetOf(node, SHOWN);
  if (shown) setValue(shown, text);
  node.setDirtyCanvas?.(true, true);
}

function edit(node) {
  const text = node.properties[SAVED];
  const caption = widgetOf(node, "caption");
  if (!text || !caption) return;
  setValue(caption, text);
  (caption.element ?? caption.inputEl)?.focus?.();
  node.setDirtyCanvas?.(true, true);
  app.extensionManager?.workflow?.activeWorkflow?.changeTracker?.checkState?.(); // for undo
}

// Behind all widgets of the schema and never saved or sent: positions of saved values stay as they are.
function addWidgets(node) {
  const button = node.addWidget("button", BUTTON, null, () => edit(node), { serialize: false });
  button.serialize = false;
  const { widget: shown } = app.widgets.STRING(node, SHOWN, ["STRING", { multiline: true }], app);
  shown.serialize = false;
  Object.assign(shown.options, { serialize: false, read_only: true });
  const area = shown.element ?? shown.inputEl;
  if (area) {
    area.readOnly = true;
    area.placeholder = "the caption of the last run";
    area.style.opacity = "0.75";
  }
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
  read: (output) => (Array.isArray(output.text) ? output.text.join("") : null),
  show,
});

app.registerExtension({
  name: "EAM.SubjectCaption",
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    addWidgets(node);
    after(node, "onConfigure", () => {
      const text = node.properties?.[SAVED];
      if (typeof text === "string") show(node, text);
    });
  },
});
