// The text of a node's last run in a read-only field at its foot, also after a saved workflow was loaded again.
import { app } from "../../scripts/app.js";
import { after } from "./hooks.js";
import { keepRuns } from "./last_run.js";

export function widgetOf(node, name) {
  return node.widgets?.find((widget) => widget.name === name);
}

export function setValue(widget, text) {
  widget.value = text;
  widget.callback?.(text); // Nodes 2.0 hears of changes only through it
}

/**
 * Keep the texts that runs send to nodes of a type, and show them.
 * `field`: name of the widget. `property`: of the node, saved with the workflow. `separator`: between several texts.
 * Returns a function that adds the field to a node and returns its text area, if it has one.
 */
export function keepText(type, { field, property, placeholder, separator = "" }) {
  function show(node, text) {
    const shown = widgetOf(node, field);
    if (shown) setValue(shown, text);
    node.setDirtyCanvas?.(true, true);
  }

  keepRuns(type, {
    property,
    read: (output) => (Array.isArray(output.text) ? output.text.join(separator) : null),
    show,
  });

  return function addField(node) {
    // Behind all widgets of the schema and never saved or sent: positions of saved values stay as they are.
    const { widget } = app.widgets.STRING(node, field, ["STRING", { multiline: true }], app);
    widget.serialize = false;
    Object.assign(widget.options, { serialize: false, read_only: true });
    after(node, "onConfigure", () => {
      const text = node.properties?.[property];
      if (typeof text === "string") show(node, text);
    });
    const area = widget.element ?? widget.inputEl;
    if (area) Object.assign(area, { readOnly: true, placeholder });
    return area;
  };
}
