// The live panel of a LatentSync node: plain DOM, independent of ComfyUI.

const TEXTS = {
  en: {
    idle: "Ready", stopped: "Stopped", failed: "Failed",
    window: (k, n) => (n ? `window ${k} of ${n}` : `window ${k}`),
    rate: (r) => `${r} frames/s`, eta: (t) => `${t} left`,
    retries: (n) => `${n} ${n === 1 ? "retry" : "retries"}`, skipped: "unchanged frames:",
    stages: { load: "Loading the model", prepare: "Preparing", sync: "Syncing the lips", done: "Done" },
  },
  zh: {
    idle: "就绪", stopped: "已停止", failed: "失败",
    window: (k, n) => (n ? `第 ${k}/${n} 窗` : `第 ${k} 窗`),
    rate: (r) => `${r} 帧/秒`, eta: (t) => `剩余 ${t}`,
    retries: (n) => `重试 ${n} 次`, skipped: "未改变的帧：",
    stages: { load: "加载模型", prepare: "准备", sync: "对口型", done: "完成" },
  },
};

const STYLE = `
.latentsync-panel { box-sizing: border-box; width: 100%; height: 100%; overflow: hidden; }
.latentsync-panel-body { display: flex; flex-direction: column; gap: 5px; padding: 7px 8px; border-radius: 6px;
  background: var(--comfy-input-bg, #222); color: var(--input-text, #ddd); font: 11px/1.35 sans-serif; }
.latentsync-panel-row { display: flex; gap: 6px; align-items: center; }
.latentsync-panel-stage { flex: 1; font-weight: 600; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.latentsync-panel-badge { padding: 0 6px; border-radius: 8px; background: #3d5a80; color: #fff; }
.latentsync-panel-bar { flex: 1; height: 6px; border-radius: 3px; overflow: hidden; background: rgba(128,128,128,.3); }
.latentsync-panel-bar > div { height: 100%; width: 0; background: #4a9d5b; transition: width .2s; }
.latentsync-panel-bar.full > div { background: #c97b2a; }
.latentsync-panel-name { width: 36px; color: var(--descrip-text, #999); }
.latentsync-panel-value, .latentsync-panel-line { color: var(--descrip-text, #999); }
.latentsync-panel-warning { color: #d9a441; overflow: hidden; overflow-wrap: anywhere; white-space: pre-line;
  display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 4; }
.latentsync-panel video, .latentsync-panel img { display: block; width: 100%; max-height: 320px; border-radius: 4px;
  object-fit: contain; background: #000; }
.lg-node .latentsync-panel video { display: none; } /* in "Nodes 2.0" the page plays it too */
.latentsync-panel [hidden] { display: none; }
`;

const ENOUGH = 0.92; // a memory bar changes colour above this fraction
const SHOWN_RANGES = 4;

export function gigabytes(bytes) {
  return (bytes / 2 ** 30).toFixed(1);
}

export function clock(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const two = (n) => String(n).padStart(2, "0");
  return h ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
}

export function ranges(skipped) {
  // A range excludes `stop`; show its last frame.
  const shown = skipped.slice(0, SHOWN_RANGES).map(([start, stop]) =>
    stop - start > 1 ? `${start}–${stop - 1}` : `${start}`);
  return shown.join(", ") + (skipped.length > SHOWN_RANGES ? ", …" : "");
}

function element(tag, name, parent) {
  const made = document.createElement(tag);
  if (name) made.className = `latentsync-panel-${name}`;
  parent?.append(made);
  return made;
}

export class Panel {
  // urlOf(file): the address of {filename, subfolder, type}. `body` holds everything that is shown.
  constructor({ language, urlOf }) {
    if (!document.getElementById("latentsync-panel-style")) {
      const style = element("style", "", document.head);
      style.id = "latentsync-panel-style";
      style.textContent = STYLE;
    }
    this.texts = TEXTS[language] ?? TEXTS.en;
    this.urlOf = urlOf;
    this.element = element("div", "");
    this.element.className = "latentsync-panel";
    this.body = element("div", "body", this.element);
    this.build();
    this.reset();
  }

  build() {
    const head = element("div", "row", this.body);
    this.badge = element("span", "badge", head);
    this.stage = element("span", "stage", head);
    this.percent = element("span", "value", head);
    this.bar = this.addBar(element("div", "row", this.body));
    this.line = element("div", "line", this.body);
    this.vram = this.addMemory("VRAM");
    this.ram = this.addMemory("RAM");
    this.notes = element("div", "line", this.body);
    this.warning = element("div", "warning", this.body);
    this.picture = element("img", "", this.body);
    this.video = element("video", "", this.body);
    Object.assign(this.video, { controls: true, loop: true, muted: true, autoplay: true, playsInline: true });
  }

  addBar(row) {
    const outer = element("div", "bar", row);
    return { row, outer, inner: element("div", "", outer) };
  }

  addMemory(name) {
    const row = element("div", "row", this.body);
    element("span", "name", row).textContent = name;
    return { ...this.addBar(row), value: element("span", "value", row) };
  }

  reset() {
    for (const part of [this.badge, this.percent, this.bar.row, this.line, this.notes, this.warning, this.picture,
      this.video, this.vram.row, this.ram.row]) part.hidden = true;
    this.video.removeAttribute("src");
    this.stage.textContent = this.texts.idle;
  }

  // One event from the node; see latentsync/comfyui/host.py.
  update(state) {
    const { texts } = this;
    this.video.hidden ||= state.stage !== "done"; // of an earlier run
    this.show(this.badge, state.tier);
    this.stage.textContent = texts.stages[state.stage] ?? state.stage;
    const share = state.total ? Math.min(1, state.done / state.total) : null;
    this.bar.row.hidden = share === null;
    this.bar.inner.style.width = `${100 * (share ?? 0)}%`;
    this.show(this.percent, share === null ? "" : `${Math.floor(100 * share)} %`);
    this.show(this.line, [
      state.window && texts.window(state.window, state.windows),
      state.rate && texts.rate(state.rate.toFixed(state.rate < 10 ? 2 : 0)),
      state.eta && texts.eta(clock(state.eta)),
    ].filter(Boolean).join(" · "));
    this.updateMemory(this.vram, state.vram);
    this.updateMemory(this.ram, state.ram);
    this.show(this.notes, [
      state.retries && texts.retries(state.retries),
      state.skipped?.length && `${texts.skipped} ${ranges(state.skipped)}`,
    ].filter(Boolean).join(" · "));
    this.show(this.warning, state.warnings.join("\n"));
    this.warning.title = this.warning.textContent; // all of it; only its first lines are shown
  }

  updateMemory(part, pair) {
    part.row.hidden = !pair;
    if (!pair) return;
    const [used, total] = pair;
    part.inner.style.width = `${(100 * used) / total}%`;
    part.outer.classList.toggle("full", used / total > ENOUGH);
    part.value.textContent = `${gigabytes(used)} / ${gigabytes(total)} GB`;
  }

  // Show a frame of the current window, a Blob.
  preview(blob) {
    URL.revokeObjectURL(this.picture.src);
    this.picture.src = URL.createObjectURL(blob);
    this.picture.hidden = false;
  }

  // Play the finished video; file as for urlOf.
  play(file) {
    this.stage.textContent = this.texts.stages.done;
    this.picture.hidden = true;
    this.video.hidden = false;
    this.video.src = this.urlOf(file);
  }

  // how: "stopped" or "failed".
  end(how) {
    this.stage.textContent = this.texts[how];
    this.percent.hidden = true;
  }

  show(part, text) {
    part.hidden = !text;
    part.textContent = text ?? "";
  }
}
