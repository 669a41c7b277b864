// EAM Subject Caption: shows the caption that the last run used, and puts it into the caption field for editing.
import { app } from "../../scripts/app.js";
import { keepText, setValue, widgetOf } from "./shown_text.js";

const NODE = "EAM_SubjectCaption";
const BUTTON = "Edit this caption";
const SAVED = "eam_used_caption";

const addCaption = keepText(NODE, {
  field: "used caption",
  property: SAVED,
  placeholder: "the caption of the last run",
});

function edit(node) {
  const text = node.properties[SAVED];
  const caption = widgetOf(node, "caption");
  if (!text || !caption) return;
  setValue(caption, text);
  (caption.element ?? caption.inputEl)?.focus?.();
  node.setDirtyCanvas?.(true, true);
  app.extensionManager?.workflow?.activeWorkflow?.changeTracker?.checkState?.(); // for undo
}

app.registerExtension({
  name: "EAM.SubjectCaption",
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    const button = node.addWidget("button", BUTTON, null, () => edit(node), { serialize: false });
    button.serialize = false; // like what is shown below it: positions of saved values stay as they are
    const area = addCaption(node);
    if (area) area.style.opacity = "0.75";
  },
});
