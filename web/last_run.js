// What a node's last run sent stays with the workflow that was queued, whichever is open by then, and out of undo.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const kinds = new Map();

/**
 * Keep what a run sends to nodes of a type in one of their properties, so that a saved workflow shows it again.
 * `read(output)`: what to keep, of plain JSON; null for nothing. `show(node, value)`: put it on the screen.
 */
export function keepRuns(type, { property, read, show }) {
  kinds.set(type, { property, read, show });
}

const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);

/** The workflow that was queued: the front end notes each output there too. Where it does not, the one on show. */
function ownerOf(output) {
  const { activeWorkflow, openWorkflows = [] } = app.extensionManager?.workflow ?? {};
  const holds = ({ changeTracker }) =>
    changeTracker !== activeWorkflow?.changeTracker && Object.values(changeTracker?.nodeOutputs ?? {}).includes(output);
  return { owner: openWorkflows.find(holds) ?? activeWorkflow, active: activeWorkflow };
}

// "3:5" is node 5 inside the subgraph that node 3 stands for.

function liveNode(path) {
  return path.reduce((graph, id, depth) => {
    const node = graph?.getNodeById?.(Number.isNaN(Number(id)) ? id : Number(id));
    return depth + 1 < path.length ? node?.subgraph : node;
  }, app.graph);
}

function savedNode(state, path) {
  let [nodes, node] = [state.nodes, null];
  for (const id of path) {
    node = nodes?.find((one) => String(one.id) === id);
    nodes = state.definitions?.subgraphs?.find((one) => one.id === node?.type)?.nodes;
  }
  return node;
}

/** Put a run into every state that undo knows: none of them differs by it, and none brings an older one back. */
function putIntoHistory(tracker, path, output) {
  const states = [tracker?.activeState, ...(tracker?.undoQueue ?? []), ...(tracker?.redoQueue ?? [])];
  let changed = false;
  for (const state of states.filter(Boolean)) {
    const node = savedNode(state, path);
    const kind = kinds.get(node?.type);
    const value = kind?.read(output) ?? null;
    if (value === null || same(node.properties?.[kind.property], value)) continue;
    node.properties = { ...node.properties, [kind.property]: JSON.parse(JSON.stringify(value)) };
    changed = true;
  }
  return changed;
}

/** Tell that there is something to save, but not where every change is a reason for another run. */
function tell(workflow) {
  const repeats = app.extensionManager?.queueSettings?.mode === "change" || app.ui?.autoQueueEnabled;
  if (!repeats) workflow.changeTracker.updateModified?.();
  workflow.isModified = true;
}

function take({ node: id, display_node: shownBy, output }) {
  const path = String(shownBy ?? id).split(":");
  const { owner, active } = ownerOf(output);
  const isShown = owner?.changeTracker === active?.changeTracker;
  const node = isShown ? liveNode(path) : null;
  const kind = kinds.get(node?.comfyClass);
  const value = kind?.read(output) ?? null;
  if (value !== null) node.properties[kind.property] = value;
  if (putIntoHistory(owner?.changeTracker, path, output)) tell(owner);
  if (value !== null) kind.show(node, value);
}

api.addEventListener("executed", ({ detail }) => {
  if (detail?.output) take(detail);
});
