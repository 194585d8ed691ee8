// Adds the live panel to the node LatentSync16MEMSAFE and updates it from the server's events; shows the text of
// LatentSyncMemoryPlan in its node. In "Nodes 2.0" the page itself plays the finished video, below the panel.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { Panel } from "./panel.js";

const SYNC_NODE = "LatentSync16MEMSAFE";
const PLAN_NODE = "LatentSyncMemoryPlan";
const SAVE_NODE = "LatentSyncSaveVideo";
const PROGRESS = "latentsync.memsafe.progress";
const PREVIEW = "b_preview_with_metadata";
const MARGIN = 10; // px, added by ComfyUI around a DOM widget
const LINE = 30; // px, height of a widget with one line or none

const panels = new WeakMap();
const shows = new WeakMap(); // node -> function that shows its result

// Returns the node of an execution id such as "7", or "3:7" for node 7 inside the subgraph node 3; the page may give
// the subgraph's own id instead of the 3.
function nodeOf(id) {
  const root = app.rootGraph ?? app.graph;
  let [graph, node] = [root, null];
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById(Number(part));
    graph = node?.subgraph ?? root.subgraphs?.get(part);
  }
  return node;
}

function urlOf({ filename, subfolder, type }) {
  const query = new URLSearchParams({ filename, subfolder, type, t: Date.now() }); // a file name may be reused
  return api.apiURL(`/view?${query}`);
}

function language() {
  return String(app.extensionManager?.setting?.get("Comfy.Locale") ?? "en").slice(0, 2);
}

function fit(node) {
  node.setSize([node.size[0], node.computeSize()[1]]); // no widget of our nodes can use more height
  node.setDirtyCanvas(true, true);
}

// Adds an HTML widget below the others, as high as `content`, the part of `element` that holds everything shown.
function addWidget(node, name, element, content) {
  let height = LINE;
  const outerHeight = () => height + 2 * MARGIN;
  const options = { serialize: false, hideOnZoom: false, getMinHeight: outerHeight, getMaxHeight: outerHeight };
  const widget = node.addDOMWidget(name, `latentsync_${name}`, element, options);
  widget.serialize = false; // saved workflows hold no value of it
  fit(node);
  new ResizeObserver(() => {
    if (!content.offsetHeight) return; // out of view
    height = Math.max(LINE, content.offsetHeight);
    fit(node);
  }).observe(content);

  // Nor the height of its content: it would count as a change for undo and for reopened workflows.
  const { onSerialize } = node;
  node.onSerialize = function (saved) {
    onSerialize?.apply(this, arguments);
    saved.size[1] -= height - LINE;
  };
}

// Calls show(output) with the output of the node's run, or of ComfyUI's cache.
function onResult(node, show) {
  shows.set(node, show);
  const { onExecuted } = node;
  node.onExecuted = function (output) {
    onExecuted?.apply(this, arguments);
    show(output);
  };
}

// Undo and reopened tabs create new nodes; the page has kept the outputs of the old ones.
function showAgain(outputs) {
  for (const [id, output] of Object.entries(outputs)) shows.get(nodeOf(id))?.(output);
}

function addPlan(node) {
  const frame = document.createElement("div");
  const text = frame.appendChild(document.createElement("div"));
  text.className = "latentsync-plan";
  Object.assign(text.style, { font: "11px/1.4 monospace", color: "var(--input-text)" });
  addWidget(node, "plan", frame, text);
  onResult(node, (output) => {
    text.replaceChildren(...(output?.text ?? []).join("\n").split("\n").map((line) => {
      const row = document.createElement("div");
      row.textContent = line;
      Object.assign(row.style, { whiteSpace: "pre-wrap", paddingLeft: "15ch", textIndent: "-15ch" }); // its first column
      return row;
    }));
  });
}

function addPanel(node) {
  const panel = new Panel({ language: language(), urlOf });
  panels.set(node, panel);
  addWidget(node, "progress", panel.element, panel.body);

  // The canvas would draw previews and result too, and keep the last preview over the video (frontend 1.32).
  node.onDrawBackground = () => {};
  onResult(node, (output) => output?.images?.length && panel.play(output.images[0]));
}

function toPanel(id, act) {
  const panel = panels.get(nodeOf(id));
  if (panel) act(panel);
}

// Previews go to the panel only: in "Nodes 2.0" the page would show the last one instead of the video (frontend
// 1.32). A subgraph node around ours still gets them.
function onPreview(event) {
  const { blob, displayNodeId } = event.detail;
  toPanel(displayNodeId, (panel) => {
    event.stopImmediatePropagation();
    panel.preview(blob);
    const outer = displayNodeId.split(":").slice(0, -1).join(":");
    if (outer) api.dispatchCustomEvent(PREVIEW, { ...event.detail, displayNodeId: outer });
  });
}

const extension = {
  name: "LatentSync.MEMSAFE",
  setup() {
    api.addEventListener(PROGRESS, ({ detail }) => toPanel(detail.node, (panel) => panel.update(detail)));
    api.addEventListener("executing", ({ detail }) => detail && toPanel(detail, (panel) => panel.reset()));
    api.addEventListener("execution_interrupted", ({ detail }) =>
      toPanel(detail.node_id, (panel) => panel.end("stopped")));
    api.addEventListener("execution_error", ({ detail }) =>
      toPanel(detail.node_id, (panel) => panel.end("failed")));
  },
  nodeCreated(node) {
    if (node.comfyClass === SYNC_NODE) addPanel(node);
    if (node.comfyClass === PLAN_NODE) addPlan(node);
    // Otherwise the page shows the file as an image, unless an input accepts VIDEO only.
    if ([SYNC_NODE, SAVE_NODE].includes(node.comfyClass)) node.previewMediaType = "video";
  },
  onNodeOutputsUpdated: showAgain,
  afterConfigureGraph: () => showAgain(app.nodeOutputs),
};

// This folder may be served under two names: the pack's folder, and the project's name for folders whose names
// ComfyUI's server cannot serve (spaces, non-ASCII letters).
if (!app.extensions.some(({ name }) => name === extension.name)) {
  app.registerExtension(extension);
  api.addEventListener(PREVIEW, onPreview); // before setup, when the page's own listener is registered
}
