"use strict";
(() => {
const $ = (id) => document.getElementById(id);
const meta = JSON.parse($("meta").textContent);
const SVG = "http://www.w3.org/2000/svg";

/* What a trace names becomes text nodes, and nothing else: there is no innerHTML in this file. */
function make(tag, attributes, ...children) {
  const out = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name === "class") out.className = value;
    else if (name.startsWith("on")) out.addEventListener(name.slice(2), value);
    else out.setAttribute(name, value);
  }
  out.append(...children.filter((c) => c !== null && c !== undefined));
  return out;
}
function draw(tag, attributes, ...children) {
  const out = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes || {})) out.setAttribute(name, value);
  out.append(...children);
  return out;
}

/* ---- times: host units from the first event on */
const factor = meta.mult / 2 ** meta.shift;
const span = meta.span;
const stampOf = (t) => BigInt.asUintN(64, BigInt(meta.stamp) + BigInt(Math.round(t))).toString();
function text(value, unit) {
  if (unit !== "ns") return `${Math.round(value).toLocaleString("en")} ${unit}`;
  const size = Math.abs(value);
  if (size < 1e3) return `${+value.toFixed(size < 10 ? 2 : 0)} ns`;
  const [by, name] = size < 1e6 ? [1e3, "µs"] : size < 1e9 ? [1e6, "ms"] : [1e9, "s"];
  return `${(value / by).toFixed(3)} ${name}`;
}
const ns = (value) => (value === null || value === undefined ? "not known" : text(value, meta.unit));
const took = (units) => text(units * factor, meta.unit);

/* ---- unpacking */
async function inflate(base64) {
  let bytes;
  if (Uint8Array.fromBase64) bytes = Uint8Array.fromBase64(base64);
  else {
    const raw = atob(base64);
    bytes = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  }
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}
function column(buffer, where, name, put) {
  const part = (which) => where[`${name}.${which}`];
  const [lowAt, n] = part("low");
  const low = new Uint8Array(buffer, lowAt, n), high = new Uint8Array(buffer, part("high")[0], n);
  const far = new Float64Array(buffer, part("far")[0], part("far")[1] / 8);
  let next = 0;
  for (let i = 0; i < n; i++) {
    const value = low[i] | (high[i] << 8);
    put(i, value === 0xffff ? far[next++] : value);
  }
  return n;
}
function firstAfter(values, n, t) {
  let lo = 0, hi = n;
  while (lo < hi) {
    const mid = (lo + hi) >> 1;
    if (values[mid] > t) hi = mid; else lo = mid + 1;
  }
  return lo;
}

/* ---- lanes */
const lanes = meta.lanes.map((lane, number) => ({
  ...lane, number, begin: null, what: null, n: 0, eventAt: null, eventKind: null, match: null,
  height: lane.kind === "vcpu" ? 30 : 20, y: 0,
}));
const HEAD = 22, RULER = 24, GAP = 3;
let tall = RULER;
{
  let group = null;
  for (const lane of lanes) {
    const owner = lane.kind === "vcpu" && lane.guest !== null ? lane.guest : lane.machine;
    lane.head = owner !== group ? owner : null;
    if (lane.head !== null) tall += HEAD;
    group = owner;
    lane.y = tall;
    tall += lane.height + GAP;
    lane.label = lane.kind === "cpu" ? `CPU ${lane.cpu}` : lane.guest !== null ? `vCPU ${lane.cpu}` : `thread ${lane.tid}`;
    lane.title = lane.kind === "cpu" ? `CPU ${lane.cpu} of ${lane.machine}`
      : lane.guest !== null ? `vCPU ${lane.cpu} of ${lane.guest} (thread ${lane.tid} of ${lane.machine})`
      : `thread ${lane.tid} of ${lane.machine}, which runs a guest that is not recorded`;
  }
  tall += 4;
}
const parentOf = new Map(meta.files.map((f) => [f.name, f.parent]));
const laneOf = (guest, cpu, kind) => lanes.find((l) => l.kind === kind && l.cpu === cpu && (kind === "vcpu" ? l.guest : l.machine) === guest);

let buckets = meta.events.buckets, shares = null, times = null, loaded = false;
let eventAt = null;
let search = null;

/* ---- colours */
const CLASS_WORDS = {
  unknown: "not seen by the host, or not known", "guest-task": "guest mode: a task", "guest-idle": "guest mode: idle",
  "guest-irq": "guest mode: interrupt, softirq", guest: "guest mode: what, is not known", kernel: "exit, in the kernel",
  user: "exit, in the VMM", outside: "outside guest mode", polling: "halt polling", halted: "halted",
  blocked: "blocked", waiting: "waiting for a CPU",
  idle: "idle", irq: "interrupt", softirq: "softirq", vcpu: "a vCPU's thread", task: "other tasks",
};
let palette = {};
const BYTES = new Uint8Array(new Uint32Array([1]).buffer)[0] === 1;
function rgb(hex) {
  const n = parseInt(hex.slice(1), 16);
  return [n >> 16, (n >> 8) & 255, n & 255];
}
const word = ([r, g, b]) => (BYTES ? ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0 : ((r << 24) | (g << 16) | (b << 8) | 255) >>> 0);
function readPalette() {
  const style = getComputedStyle(document.documentElement);
  const get = (name) => style.getPropertyValue(`--${name}`).trim();
  palette = { css: {}, ink: get("ink"), soft: get("soft"), line: get("line"), paper: get("paper"), panel: get("panel"), mark: get("mark"), accent: get("accent") };
  const paper = rgb(palette.paper);
  palette.paperWord = word(paper);
  palette.markWord = word(rgb(palette.mark));
  palette.inkWord = word(rgb(palette.ink));
  const dim = (c) => c.map((v, i) => Math.round(v * 0.2 + paper[i] * 0.8));
  for (const name of new Set(lanes.flatMap((l) => l.names))) {
    const colour = rgb(get(name));
    const light = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140;
    palette.css[name] = get(name);
    palette[name] = { word: word(colour), dim: word(dim(colour)), ink: light ? "#10151b" : "#ffffff" };
  }
  for (const lane of lanes) {
    lane.colours = Uint32Array.from([...lane.names.map((n) => palette[n].word), ...lane.names.map((n) => palette[n].dim)]);
  }
}

/* ---- the view */
const canvas = $("canvas"), context = canvas.getContext("2d", { alpha: false });
const map = $("map"), scroll = $("scroll"), tip = $("tip");
const view = { from: 0, to: span };
let width = 0, height = 0, ratio = 1, gutter = 110, image = null, pixels = null, chosen = 0, cursor = null, dirty = false;
let shownSpan = null, firstDraw = 0;

function resize() {
  ratio = Math.min(window.devicePixelRatio || 1, 2);
  width = scroll.clientWidth;
  $("tall").style.height = `${tall}px`;
  height = Math.min(tall, printing ? tall : Math.max(180, Math.min(window.innerHeight * 0.72, 900)));
  scroll.style.height = `${height}px`;
  gutter = width < 560 ? 58 : 104;
  canvas.style.height = `${height}px`;
  canvas.width = Math.max(1, Math.round(width * ratio));
  canvas.height = Math.max(1, Math.round(height * ratio));
  map.width = Math.max(1, Math.round(width * ratio));
  map.height = 28 * ratio;
  image = context.createImageData(canvas.width, canvas.height);
  pixels = new Uint32Array(image.data.buffer);
  later();
}
function later() {
  if (dirty) return;
  dirty = true;
  requestAnimationFrame(paint);
}
function look(from, to) {
  const least = Math.min(span, Math.max(4, 8 / factor));
  let size = Math.min(span, Math.max(least, to - from));
  let begin = (from + to) / 2 - size / 2;
  begin = Math.max(0, Math.min(begin, span - size));
  view.from = begin;
  view.to = begin + size;
  later();
  afterLook();
}
const zoom = (by, at) => {
  const centre = at === undefined ? (view.from + view.to) / 2 : at;
  look(centre - (centre - view.from) * by, centre + (view.to - centre) * by);
};
const move = (by) => { const size = view.to - view.from; const d = Math.max(-view.from, Math.min(size * by, span - view.to)); look(view.from + d, view.to + d); };
let glide = 0;
/* goes there in a few frames, so that the eye can follow */
function go(from, to) {
  cancelAnimationFrame(glide);
  if (printing || matchMedia("(prefers-reduced-motion: reduce)").matches) { look(from, to); return; }
  const a = { ...view }, begin = performance.now();
  const scale = Math.log((to - from) / (a.to - a.from));
  const step = (now) => {
    const x = Math.min(1, (now - begin) / 260), e = x * x * (3 - 2 * x);
    if (x >= 1) { look(from, to); return; }
    const size = (a.to - a.from) * Math.exp(scale * e);
    // the place moves with the size, so that it stays in sight
    const k = Math.abs(scale) < 1e-6 ? e : (Math.exp(scale * e) - 1) / (Math.exp(scale) - 1);
    const centre = (a.from + a.to) / 2 + ((from + to) / 2 - (a.from + a.to) / 2) * k;
    look(centre - size / 2, centre + size / 2);
    glide = requestAnimationFrame(step);
  };
  glide = requestAnimationFrame(step);
}
let shown = null;
/* a place that something on the page leads to */
function show(from, to, lane, words) {
  shown = { from, to };
  if (lane) choose(lane.number, true);
  const size = Math.max(to - from, 40 / factor);
  const middle = (from + to) / 2;
  go(Math.max(0, middle - size * 0.8), Math.min(span, middle + size * 0.8));
  $("timeline").scrollIntoView({ block: "start" });
  canvas.focus({ preventScroll: true });
  say(`${words}, at host stamp ${stampOf(from)}`);
}
const say = (words) => { $("where").textContent = words; };

const xOf = (t) => gutter + ((t - view.from) / (view.to - view.from)) * (width - gutter);
const tOf = (x) => view.from + ((x - gutter) / Math.max(1, width - gutter)) * (view.to - view.from);

/* ---- painting */
let sums = new Float32Array(0), touched = new Uint8Array(0);
function paint() {
  dirty = false;
  const top = scroll.scrollTop;
  const left = Math.round(gutter * ratio), columns = canvas.width - left;
  if (columns < 1) return;
  pixels.fill(palette.paperWord);
  const labels = [];
  for (const lane of lanes) {
    const y = lane.y - top;
    if (y + lane.height < RULER || y > height) continue;
    const y0 = Math.round(y * ratio), y1 = Math.round((y + lane.height) * ratio);
    fill(lane, left, columns, y0, y1, labels);
  }
  if (loaded) for (const lane of lanes) {
    const y = lane.y - top;
    if (lane.kind === "cpu" && y + lane.height >= RULER && y <= height) ticks(lane, left, columns, Math.round(y * ratio), Math.round((y + lane.height) * ratio));
  }
  context.putImageData(image, 0, 0);
  context.save();
  context.scale(ratio, ratio);
  words(labels, top);
  context.restore();
  paintMap();
  if (!firstDraw && shares) {
    firstDraw = performance.now();
    document.documentElement.dataset.drawn = Math.round(firstDraw);
  }
}

function fill(lane, left, columns, y0, y1, labels) {
  const classes = lane.names.length, size = columns * classes * 2;
  if (sums.length < size) sums = new Float32Array(size);
  if (touched.length < columns) touched = new Uint8Array(columns);
  const perColumn = (view.to - view.from) / columns;
  const coarse = shares && !search && (!loaded || perColumn >= span / buckets);
  if (!coarse && !loaded) return;
  sums.fill(0, 0, size);
  touched.fill(0, 0, columns);
  const hatch = lane.names.map((n) => n === "unknown" ? 1 : n === "waiting" ? 2 : 0);
  const stack = (x) => {
    let y = y1;
    const all = y1 - y0;
    let total = 0;
    for (let k = 0; k < classes * 2; k++) total += sums[x * classes * 2 + k];
    if (total <= 0) return;
    for (let k = 0; k < classes * 2 && y > y0; k++) {
      const share = sums[x * classes * 2 + k];
      if (share <= 0) continue;
      const rows = Math.min(y - y0, Math.max(1, Math.round((share / total) * all)));
      block(left + x, left + x + 1, y - rows, y, lane.colours[k], hatch[k % classes]);
      y -= rows;
      if (y > y0 && k === classes * 2 - 1) block(left + x, left + x + 1, y0, y, lane.colours[k], 0);
    }
  };
  if (coarse) {
    const base = lane.sharesAt, unit = span / buckets;
    for (let x = 0; x < columns; x++) {
      const a = Math.floor((view.from + x * perColumn) / unit), b = Math.max(a + 1, Math.ceil((view.from + (x + 1) * perColumn) / unit));
      for (let bucket = Math.max(a, 0); bucket < Math.min(b, buckets); bucket++) {
        const at = base + bucket * classes;
        for (let k = 0; k < classes; k++) sums[x * classes * 2 + k] += shares[at + k];
      }
      stack(x);
    }
    return;
  }
  const begin = lane.begin, what = lane.what, kinds = lane.classes, n = lane.n, match = search ? lane.match : null;
  const scale = columns / (view.to - view.from);
  let i = Math.max(0, firstAfter(begin, n, view.from) - 1);
  for (; i < n && begin[i] < view.to; i++) {
    const end = i + 1 < n ? begin[i + 1] : span;
    const kind = what[i];
    const k = kinds[kind] + (search && !(match && match[kind]) ? classes : 0);
    const a = Math.max(0, (begin[i] - view.from) * scale), b = Math.min(columns, (end - view.from) * scale);
    const ia = Math.floor(a), ib = Math.floor(b);
    if (ia === ib) {
      if (ia < columns) { sums[ia * classes * 2 + k] += Math.max(b - a, 1e-4); touched[ia] = 1; }
      continue;
    }
    if (a > ia) { sums[ia * classes * 2 + k] += ia + 1 - a; touched[ia] = 1; }
    const first = a > ia ? ia + 1 : ia;
    if (ib > first) {
      block(left + first, left + ib, y0, y1, lane.colours[k], hatch[kinds[kind]]);
      if ((ib - first) / ratio > 26) labels.push([lane, kind, gutter + first / ratio, gutter + ib / ratio, k >= classes, i]);
    }
    if (b > ib && ib < columns) { sums[ib * classes * 2 + k] += b - ib; touched[ib] = 1; }
  }
  for (let x = 0; x < columns; x++) if (touched[x]) stack(x);
}
function block(x0, x1, y0, y1, colour, hatch) {
  const w = canvas.width;
  const bottom = Math.min(y1, canvas.height), top = Math.max(y0, 0);
  for (let y = top; y < bottom; y++) {
    if (!hatch) { pixels.fill(colour, y * w + x0, y * w + x1); continue; }
    for (let x = x0; x < x1; x++) {
      const lit = hatch === 1 ? ((x + y) & 7) < 1 : ((x - y) & 7) < 2;
      pixels[y * w + x] = lit ? palette.paperWord : colour;
    }
  }
}
function ticks(lane, left, columns, y0, y1) {
  const at = lane.eventAt, n = at ? at.length : 0;
  if (!n) return;
  const scale = columns / (view.to - view.from), w = canvas.width;
  const first = firstAfter(at, n, view.from - 1e-9), last = firstAfter(at, n, view.to);
  const many = last - first > columns;
  const events = search && lane.eventMatch;
  if (many && !events) return;
  const foot = Math.max(2, Math.round(3 * ratio));
  for (let i = first; i < last; i++) {
    const hit = events && lane.eventMatch[lane.eventKind[i]];
    if (!hit && many) continue;
    const x = left + Math.min(columns - 1, Math.floor((at[i] - view.from) * scale));
    const top = Math.max(0, hit ? y0 : y1 - foot), bottom = Math.min(canvas.height, y1);
    const colour = hit ? palette.markWord : palette.inkWord;
    for (let y = top; y < bottom; y++) pixels[y * w + x] = colour;
  }
}
const FONT = 'system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif';
function fit(words, room) {
  if (context.measureText(words).width <= room) return words;
  let lo = 0, hi = words.length;
  while (lo < hi) {
    const mid = (lo + hi + 1) >> 1;
    if (context.measureText(words.slice(0, mid) + "…").width <= room) lo = mid; else hi = mid - 1;
  }
  return lo > 1 ? words.slice(0, lo) + "…" : "";
}
function words(labels, top) {
  context.textBaseline = "middle";
  context.font = `11px ${FONT}`;
  for (const [lane, kind, x0, x1, dim] of labels) {
    const cls = lane.names[lane.classes[kind]];
    if (cls === "unknown" || dim) continue;
    let said = lane.texts[kind];
    if (lane.guest !== null && said.startsWith(`${lane.guest}: `)) said = said.slice(lane.guest.length + 2);
    if (said.startsWith(`${lane.machine}: `)) said = said.slice(lane.machine.length + 2);
    const waits = `waits for a CPU of ${lane.machine}: `;
    if (said.startsWith(waits)) said = `waits: ${said.slice(waits.length)}`;
    said = fit(said, x1 - x0 - 8);
    if (!said) continue;
    if (cls === "waiting") {
      context.fillStyle = palette.css.waiting;
      context.fillRect(x0 + 2, lane.y - top + lane.height / 2 - 8, context.measureText(said).width + 5, 16);
    }
    context.fillStyle = palette[cls].ink;
    context.fillText(said, x0 + 4, lane.y - top + lane.height / 2 + 0.5);
  }
  // the gutter, and whose lanes they are
  context.fillStyle = palette.paper;
  context.fillRect(0, 0, gutter, height);
  for (const lane of lanes) {
    const y = lane.y - top;
    if (lane.head !== null && y > 0 && y - HEAD < height) {
      context.fillStyle = palette.paper;
      context.fillRect(0, y - HEAD, width, HEAD - 2);
      context.font = `600 12px ${FONT}`;
      context.fillStyle = palette.ink;
      const parent = parentOf.get(lane.head);
      context.fillText(fit(parent ? `${lane.head}, a guest of ${parent}` : lane.head === "host" ? "host" : `${lane.head}, host`, width - 12), 6, y - HEAD / 2 + 1);
    }
    if (y + lane.height < 0 || y > height) continue;
    context.font = `${lane.kind === "vcpu" ? "600 " : ""}11px ${FONT}`;
    context.fillStyle = lane.number === chosen && document.activeElement === canvas ? palette.accent : lane.kind === "vcpu" ? palette.ink : palette.soft;
    context.fillText(fit(lane.label, gutter - 12), 8, y + lane.height / 2 + 0.5);
    if (lane.number === chosen && document.activeElement === canvas) context.fillRect(0, y, 3, lane.height);
  }
  if (shown) {
    const a = xOf(shown.from), b = Math.max(a + 1, xOf(shown.to));
    context.strokeStyle = palette.mark;
    context.lineWidth = 1.5;
    if (b > gutter && a < width) {
      context.save();
      context.beginPath();
      context.rect(gutter, 0, width - gutter, height);
      context.clip();
      context.strokeRect(a, RULER - 3, b - a, height);
      context.restore();
    }
  }
  ruler();
  if (cursor !== null && cursor >= view.from && cursor <= view.to) {
    const x = xOf(cursor);
    context.strokeStyle = palette.accent;
    context.lineWidth = 1;
    context.beginPath();
    context.moveTo(x, RULER - 4);
    context.lineTo(x, height);
    context.stroke();
  }
  if (drag && drag.box) {
    const a = Math.max(gutter, Math.min(drag.x0, drag.x)), b = Math.max(drag.x0, drag.x);
    context.fillStyle = palette.accent;
    context.globalAlpha = 0.22;
    context.fillRect(a, RULER, b - a, height);
    context.globalAlpha = 1;
    context.font = `600 12px ${FONT}`;
    context.fillText(took(tOf(b) - tOf(a)), Math.min(a + 6, width - 90), RULER + 12);
  }
}
function ruler() {
  context.fillStyle = palette.panel;
  context.fillRect(0, 0, width, RULER - 4);
  context.fillStyle = palette.line;
  context.fillRect(0, RULER - 4, width, 1);
  const size = (view.to - view.from) * factor;
  const wanted = Math.max(2, Math.floor((width - gutter) / 110));
  let step = 10 ** Math.floor(Math.log10(size / wanted));
  step *= [1, 2, 5, 10].find((by) => size / (step * by) <= wanted) || 10;
  step = Math.max(step, 1);
  const unit = meta.unit !== "ns" ? [1, ""] : step >= 1e9 ? [1e9, "s"] : step >= 1e6 ? [1e6, "ms"] : step >= 1e3 ? [1e3, "µs"] : [1, "ns"];
  context.font = `11px ${FONT}`;
  context.textBaseline = "middle";
  let free = gutter - 1;
  for (let at = Math.ceil((view.from * factor) / step) * step; at <= view.to * factor; at += step) {
    const x = xOf(at / factor);
    context.fillStyle = palette.line;
    context.fillRect(x, RULER - 8, 1, 5);
    const said = `${(Math.round(at / unit[0] * 1e6) / 1e6).toLocaleString("en")} ${unit[1]}`;
    const wide = context.measureText(said).width;
    if (x + 3 < free || x + wide > width) continue;
    context.fillStyle = palette.soft;
    context.fillText(said, x + 3, (RULER - 6) / 2);
    free = x + wide + 14;
  }
  context.fillStyle = palette.panel;
  context.fillRect(0, 0, gutter, RULER - 4);
  context.fillStyle = palette.ink;
  context.font = `600 11px ${FONT}`;
  context.fillText(fit(text((view.to - view.from) * factor, meta.unit), gutter - 10), 6, (RULER - 6) / 2);
}
function paintMap() {
  const m = map.getContext("2d", { alpha: false });
  m.setTransform(ratio, 0, 0, ratio, 0, 0);
  m.fillStyle = palette.panel;
  m.fillRect(0, 0, width, 28);
  const at = (t) => gutter + (t / span) * (width - gutter);
  m.font = `11px ${FONT}`;
  m.textBaseline = "middle";
  m.fillStyle = palette.soft;
  m.fillText("all", 6, 14);
  if (shares) {
    // of all vCPUs together: waiting for a CPU
    const mine = lanes.filter((l) => l.kind === "vcpu");
    if (mine.length && overviewRow === null) {
      overviewRow = new Float32Array(buckets);
      for (const lane of mine) {
        const k = lane.names.indexOf("waiting"), c = lane.names.length;
        for (let b = 0; b < buckets; b++) overviewRow[b] += shares[lane.sharesAt + b * c + k] / 255 / mine.length;
      }
    }
    if (overviewRow) {
      m.fillStyle = palette.css.waiting;
      const columns = Math.max(1, Math.floor(width - gutter));
      for (let x = 0; x < columns; x++) {
        const a = Math.floor((x * buckets) / columns), b = Math.max(a + 1, Math.floor(((x + 1) * buckets) / columns));
        let sum = 0;
        for (let i = a; i < b && i < buckets; i++) sum += overviewRow[i];
        const h = (sum / (b - a)) * 22;
        if (h > 0) m.fillRect(gutter + x, 27 - Math.max(h, 0.5), 1, Math.max(h, 0.5));
      }
    }
  }
  m.fillStyle = palette.mark;
  for (const one of meta.worst) {
    const x = at(one.begin);
    m.fillRect(x - 1, 1, 2.5, 5);
  }
  const a = at(view.from), b = Math.max(a + 3, at(view.to));
  m.fillStyle = palette.accent;
  m.globalAlpha = 0.18;
  m.fillRect(a, 0, b - a, 28);
  m.globalAlpha = 1;
  m.strokeStyle = palette.accent;
  m.lineWidth = 1.5;
  m.strokeRect(a + 0.75, 0.75, Math.max(b - a - 1.5, 1.5), 26.5);
}
let overviewRow = null;

/* ---- what lies where */
function stepAt(lane, t) {
  if (!loaded || !lane.n) return -1;
  return Math.max(0, firstAfter(lane.begin, lane.n, t) - 1);
}
function laneAt(y) {
  const at = y + scroll.scrollTop;
  return lanes.find((lane) => at >= lane.y && at < lane.y + lane.height) || null;
}
function describe(lane, step) {
  const from = lane.begin[step], to = step + 1 < lane.n ? lane.begin[step + 1] : span;
  return { from, to, said: lane.texts[lane.what[step]], cls: lane.names[lane.classes[lane.what[step]]] };
}
function eventNear(lane, t, reach) {
  if (!lane.eventAt || !lane.eventAt.length) return null;
  const at = firstAfter(lane.eventAt, lane.eventAt.length, t);
  let best = null;
  for (const i of [at - 1, at]) {
    if (i < 0 || i >= lane.eventAt.length) continue;
    const far = Math.abs(lane.eventAt[i] - t);
    if (far <= reach && (best === null || far < best[0])) best = [far, i];
  }
  if (best === null) return null;
  // several at one time
  let i = best[1];
  while (i > 0 && lane.eventAt[i - 1] === lane.eventAt[i]) i--;
  const names = [];
  for (let j = i; j < lane.eventAt.length && lane.eventAt[j] === lane.eventAt[i] && names.length < 4; j++) names.push(meta.events.kinds[lane.eventKind[j]].name);
  return { at: lane.eventAt[i], names: names.join(", ") };
}
function hover(x, y) {
  const lane = x > gutter && y > RULER ? laneAt(y) : null;
  const step = lane ? stepAt(lane, tOf(x)) : -1;
  if (step < 0) { tip.hidden = true; return; }
  const found = describe(lane, step);
  const near = eventNear(lane, tOf(x), (4 * (view.to - view.from)) / (width - gutter));
  let said = `${lane.title}\n${found.said}\n${took(found.to - found.from)}, from host stamp ${stampOf(found.from)}`;
  if (near) said += `\nevent ${near.names} at ${stampOf(near.at)}`;
  tip.textContent = said;
  tip.hidden = false;
  const box = $("frame").getBoundingClientRect(), own = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(x + 14, box.width - own.width - 6))}px`;
  const below = y + 28 + 18;
  tip.style.top = `${below + own.height > box.height ? Math.max(2, y + 28 - own.height - 12) : below}px`;
}
function choose(number, reveal) {
  chosen = Math.max(0, Math.min(number, lanes.length - 1));
  const lane = lanes[chosen];
  if (reveal) {
    if (lane.y - RULER - HEAD < scroll.scrollTop) scroll.scrollTop = lane.y - RULER - HEAD;
    if (lane.y + lane.height > scroll.scrollTop + height) scroll.scrollTop = lane.y + lane.height - height + 4;
  }
  later();
  return lane;
}
function tell(lane, step) {
  if (step < 0) { say(lane.title); return; }
  const found = describe(lane, step);
  say(`${lane.title}: ${found.said}, ${took(found.to - found.from)} from host stamp ${stampOf(found.from)}`);
}
function toStep(by) {
  const lane = lanes[chosen];
  if (!loaded || !lane.n) return;
  const at = cursor === null ? (view.from + view.to) / 2 : cursor;
  const step = Math.max(0, Math.min(lane.n - 1, stepAt(lane, at) + by));
  cursor = lane.begin[step];
  if (cursor < view.from || cursor > view.to) look(cursor - (view.to - view.from) / 2, cursor + (view.to - view.from) / 2);
  tell(lane, step);
  later();
}

/* ---- mouse, touch, wheel, keys */
let drag = null;
const fingers = new Map();
const place = (event) => { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
canvas.addEventListener("pointerdown", (event) => {
  const [x, y] = place(event);
  cancelAnimationFrame(glide);
  fingers.set(event.pointerId, x);
  canvas.setPointerCapture(event.pointerId);
  if (fingers.size === 1) { drag = { x0: x, x, y, from: view.from, to: view.to, moved: false, box: event.shiftKey && event.pointerType !== "touch" }; canvas.classList.add("drag"); }
  else if (fingers.size === 2) {
    const [a, b] = [...fingers.values()];
    drag = { pinch: true, ta: tOf(Math.min(a, b)), tb: tOf(Math.max(a, b)) };
  }
});
canvas.addEventListener("pointermove", (event) => {
  const [x, y] = place(event);
  if (!fingers.has(event.pointerId)) { hover(x, y); return; }
  fingers.set(event.pointerId, x);
  if (!drag) return;
  tip.hidden = true;
  if (drag.pinch) {
    const [p, q] = [...fingers.values()];
    const a = Math.min(p, q), b = Math.max(p, q);
    if (b - a < 8) return;
    const unit = (drag.tb - drag.ta) / (b - a);
    look(drag.ta - (a - gutter) * unit, drag.ta + (width - a) * unit);
    return;
  }
  if (Math.abs(x - drag.x0) > 3) drag.moved = true;
  drag.x = x;
  if (drag.box) { later(); return; }
  const by = ((drag.x0 - x) * (drag.to - drag.from)) / Math.max(1, width - gutter);
  const kept = Math.max(-drag.from, Math.min(by, span - drag.to));
  look(drag.from + kept, drag.to + kept);
});
function lift(event) {
  const [x, y] = place(event);
  fingers.delete(event.pointerId);
  canvas.classList.remove("drag");
  const was = drag;
  drag = null;
  if (!was || was.pinch || event.type === "pointercancel") { later(); return; }
  if (was.box && was.moved) { const [a, b] = [tOf(was.x0), tOf(x)]; go(Math.max(0, Math.min(a, b)), Math.min(span, Math.max(a, b))); return; }
  if (!was.moved) {
    const lane = laneAt(y);
    if (lane && x > gutter) { choose(lane.number); cursor = tOf(x); tell(lane, stepAt(lane, cursor)); hover(x, y); }
  }
  later();
}
canvas.addEventListener("pointerup", lift);
canvas.addEventListener("pointercancel", lift);
canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
canvas.addEventListener("dblclick", (event) => { const [x] = place(event); zoom(0.4, tOf(x)); });
canvas.addEventListener("wheel", (event) => {
  const sideways = Math.abs(event.deltaX) > Math.abs(event.deltaY) || event.shiftKey;
  if (!event.ctrlKey && !event.metaKey && document.activeElement !== canvas) return;
  event.preventDefault();
  cancelAnimationFrame(glide);
  const unit = event.deltaMode === 1 ? 16 : 1;
  if (sideways) { move((((event.deltaX || event.deltaY) * unit) / width) * 0.8); return; }
  zoom(Math.exp(Math.max(-1, Math.min(1, event.deltaY * unit * 0.0025))), tOf(Math.max(gutter, place(event)[0])));
}, { passive: false });
const KEYS = {
  ArrowLeft: () => move(-0.15), ArrowRight: () => move(0.15), a: () => move(-0.15), d: () => move(0.15),
  "+": () => zoom(0.6, cursorOrMiddle()), "=": () => zoom(0.6, cursorOrMiddle()), w: () => zoom(0.6, cursorOrMiddle()),
  "-": () => zoom(1 / 0.6, cursorOrMiddle()), s: () => zoom(1 / 0.6, cursorOrMiddle()),
  0: () => go(0, span), Home: () => move(-1e9), End: () => move(1e9), PageUp: () => move(-0.9), PageDown: () => move(0.9),
  ArrowUp: () => { const l = choose(chosen - 1, true); tell(l, stepAt(l, cursorOrMiddle())); },
  ArrowDown: () => { const l = choose(chosen + 1, true); tell(l, stepAt(l, cursorOrMiddle())); },
  ",": () => toStep(-1), ".": () => toStep(1),
  Enter: () => { const l = lanes[chosen], i = stepAt(l, cursorOrMiddle()); if (i >= 0) { const d = describe(l, i); const m = (d.to - d.from) * 0.3; go(Math.max(0, d.from - m), Math.min(span, d.to + m)); tell(l, i); } },
  t: () => { $("tablebox").open = true; $("tablebox").querySelector("summary").focus(); },
};
const cursorOrMiddle = () => (cursor !== null && cursor >= view.from && cursor <= view.to ? cursor : (view.from + view.to) / 2);
canvas.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const act = KEYS[event.key];
  if (!act) return;
  event.preventDefault();
  cancelAnimationFrame(glide);
  act();
});
canvas.addEventListener("focus", later);
canvas.addEventListener("blur", later);
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || /^(INPUT|TEXTAREA)$/.test(event.target.tagName)) return;
  if (event.key === "/") { event.preventDefault(); $("search").focus(); }
  if (event.key === "n") step(1);
  if (event.key === "p") step(-1);
  if (event.key === "Escape") forget();
});
let onMap = false;
const mapTo = (event) => {
  const t = ((event.offsetX - gutter) / Math.max(1, width - gutter)) * span, half = (view.to - view.from) / 2;
  const c = Math.max(half, Math.min(t, span - half));
  look(c - half, c + half);
};
map.addEventListener("pointerdown", (event) => { onMap = true; map.setPointerCapture(event.pointerId); mapTo(event); });
map.addEventListener("pointermove", (event) => { if (onMap) mapTo(event); });
for (const end of ["pointerup", "pointercancel"]) map.addEventListener(end, () => { onMap = false; });
scroll.addEventListener("scroll", later, { passive: true });
$("in").addEventListener("click", () => zoom(0.5));
$("out").addEventListener("click", () => zoom(2));
$("all").addEventListener("click", () => { shown = null; go(0, span); });

/* ---- searching */
const names = new Map();
function index() {
  for (const lane of lanes) lane.texts.forEach((said) => {
    const key = `s${said}`;
    if (!names.has(key)) names.set(key, { said, where: lane.kind === "cpu" ? "what a CPU ran" : "what a vCPU did", event: -1 });
  });
  meta.events.kinds.forEach((kind, number) => {
    const key = `e${kind.name}`;
    const known = names.get(key);
    if (known) { known.count += kind.count; known.events.add(number); }
    else names.set(key, { said: kind.name, where: "event", count: kind.count, events: new Set([number]) });
  });
}
let listed = [], active = -1;
function suggest() {
  const wanted = $("search").value.trim().toLowerCase();
  const list = $("found");
  list.replaceChildren();
  listed = [];
  active = -1;
  if (wanted) {
    const fits = [...names.values()].filter((one) => one.said.toLowerCase().includes(wanted));
    fits.sort((a, b) => a.said.toLowerCase().indexOf(wanted) - b.said.toLowerCase().indexOf(wanted) || a.said.length - b.said.length);
    if (/^(0x[0-9a-f]{1,16}|[0-9]{1,20})$/.test(wanted) && wanted.length > 5) listed.push({ said: `go to host stamp ${wanted}`, where: "", stamp: BigInt(wanted) });
    if (fits.length) listed.push({ said: `all that holds "${$("search").value.trim()}"`, where: `${fits.length} names`, all: fits });
    listed.push(...fits.slice(0, 40));
  }
  listed.forEach((one, i) => {
    const item = make("li", { role: "option", id: `found-${i}`, "aria-selected": "false" }, make("small", {}, one.count ? `${one.where}, ${one.count.toLocaleString("en")}` : one.where), one.said);
    item.addEventListener("pointerdown", (event) => { event.preventDefault(); take(i); });
    list.append(item);
  });
  open(listed.length > 0);
}
function open(yes) {
  $("found").hidden = !yes;
  $("search").setAttribute("aria-expanded", String(yes));
  if (!yes) $("search").removeAttribute("aria-activedescendant");
}
function mark(i) {
  if (active >= 0 && $(`found-${active}`)) $(`found-${active}`).setAttribute("aria-selected", "false");
  active = (i + listed.length) % listed.length;
  const item = $(`found-${active}`);
  item.setAttribute("aria-selected", "true");
  item.scrollIntoView({ block: "nearest" });
  $("search").setAttribute("aria-activedescendant", item.id);
}
function take(i) {
  const one = listed[i];
  open(false);
  if (!one) return;
  if (one.stamp !== undefined) {
    const t = Number(BigInt.asIntN(64, one.stamp - BigInt(meta.stamp)));
    if (t < 0 || t >= span) { $("matches").textContent = "That stamp lies outside of the timeline."; return; }
    cursor = t;
    show(t, t, null, "looking");
    return;
  }
  const chosenNames = one.all || [one];
  const said = new Set(chosenNames.filter((c) => !c.events).map((c) => c.said));
  const events = new Set(chosenNames.flatMap((c) => (c.events ? [...c.events] : [])));
  let steps = 0, hits = 0;
  for (const lane of lanes) {
    lane.match = Uint8Array.from(lane.texts, (t) => (said.has(t) ? 1 : 0));
    if (loaded) for (let k = 0; k < lane.n; k++) steps += lane.match[lane.what[k]];
    lane.eventMatch = events.size ? Uint8Array.from(meta.events.kinds, (_, k) => (events.has(k) ? 1 : 0)) : null;
  }
  for (const k of events) hits += meta.events.kinds[k].count;
  search = { said: one.said };
  $("matches").textContent = `${one.said}: ${steps.toLocaleString("en")} times, ${hits.toLocaleString("en")} events` + (events.size && !meta.events.whole ? "; single events are not in this page" : "");
  for (const id of ["next", "previous", "clear"]) $(id).disabled = false;
  later();
}
function forget() {
  search = null;
  shown = null;
  for (const id of ["next", "previous", "clear"]) $(id).disabled = true;
  $("matches").textContent = "";
  $("search").value = "";
  open(false);
  later();
}
function step(by) {
  if (!search || !loaded) return;
  const at = shown ? shown.from : by > 0 ? view.from - 1 : view.to + 1;
  let best = null;
  const offer = (t, to, lane, said) => { if (best === null || (by > 0 ? t < best.t : t > best.t)) best = { t, to, lane, said }; };
  for (const lane of lanes) {
    for (let i = by > 0 ? firstAfter(lane.begin, lane.n, at) : firstAfter(lane.begin, lane.n, at - 0.5) - 1; i >= 0 && i < lane.n; i += by) {
      if (lane.begin[i] === at) continue;
      if (best !== null && (by > 0 ? lane.begin[i] >= best.t : lane.begin[i] <= best.t)) break;
      if (lane.match[lane.what[i]]) { offer(lane.begin[i], i + 1 < lane.n ? lane.begin[i + 1] : span, lane, lane.texts[lane.what[i]]); break; }
    }
    if (!lane.eventMatch || !lane.eventAt) continue;
    for (let i = by > 0 ? firstAfter(lane.eventAt, lane.eventAt.length, at) : firstAfter(lane.eventAt, lane.eventAt.length, at - 0.5) - 1; i >= 0 && i < lane.eventAt.length; i += by) {
      if (lane.eventAt[i] === at) continue;
      if (best !== null && (by > 0 ? lane.eventAt[i] >= best.t : lane.eventAt[i] <= best.t)) break;
      if (lane.eventMatch[lane.eventKind[i]]) { offer(lane.eventAt[i], lane.eventAt[i], lane, meta.events.kinds[lane.eventKind[i]].name); break; }
    }
  }
  if (best === null) { say(by > 0 ? "No further match." : "No match before."); return; }
  shown = { from: best.t, to: best.to };
  cursor = best.t;
  choose(best.lane.number, true);
  const size = view.to - view.from, want = Math.min(size, Math.max((best.to - best.t) * 3, span / 2000, 1000 / factor));
  go(Math.max(0, best.t - want * 0.4), Math.max(0, best.t - want * 0.4) + want);
  say(`${best.lane.title}: ${best.said}, ${best.to > best.t ? `${took(best.to - best.t)} ` : ""}at host stamp ${stampOf(best.t)}`);
}
$("search").addEventListener("input", suggest);
$("search").addEventListener("keydown", (event) => {
  if (event.key === "ArrowDown" && listed.length) { event.preventDefault(); mark(active + 1); }
  else if (event.key === "ArrowUp" && listed.length) { event.preventDefault(); mark(active < 0 ? -1 : active - 1); }
  else if (event.key === "Enter") { event.preventDefault(); if (!$("found").hidden && listed.length) { take(Math.max(active, 0)); if (search) step(1); } else step(event.shiftKey ? -1 : 1); }
  else if (event.key === "Escape") { if ($("found").hidden) forget(); else open(false); event.stopPropagation(); }
});
$("search").addEventListener("blur", () => open(false));
$("search").addEventListener("focus", () => { if ($("search").value && !search) suggest(); });
$("next").addEventListener("click", () => step(1));
$("previous").addEventListener("click", () => step(-1));
$("clear").addEventListener("click", forget);

/* ---- the table of what the canvas shows */
const ROWS = 300;
let tableTimer = 0;
function afterLook() {
  if (!$("tablebox").open) return;
  clearTimeout(tableTimer);
  tableTimer = setTimeout(fillTable, 150);
}
function fillTable() {
  const table = $("table"), head = table.tHead, body = table.tBodies[0];
  head.replaceChildren();
  body.replaceChildren();
  if (!loaded) return;
  const parts = lanes.map((lane) => {
    const first = Math.max(0, firstAfter(lane.begin, lane.n, view.from) - 1);
    return [lane, first, Math.max(first, firstAfter(lane.begin, lane.n, view.to - 1e-9))];
  });
  const count = parts.reduce((sum, [, a, b]) => sum + b - a, 0);
  const heads = (list) => head.append(make("tr", {}, ...list.map((h) => make("th", { scope: "col" }, h))));
  const stretch = `From host stamp ${stampOf(view.from)}, ${took(view.to - view.from)}`;
  if (count <= ROWS) {
    $("tablenote").textContent = `${stretch}: ${count} steps.`;
    heads(["Lane", "From host stamp", "Took", "What"]);
    for (const [lane, a, b] of parts) for (let i = a; i < b; i++) {
      const d = describe(lane, i);
      body.append(make("tr", {}, make("td", {}, lane.title), make("td", { class: "num" }, stampOf(d.from)), make("td", { class: "num" }, took(d.to - d.from)), make("td", { class: "text" }, d.said)));
    }
    return;
  }
  $("tablenote").textContent = `${stretch}: ${count.toLocaleString("en")} steps; zoom in until ${ROWS} are left to have each of them. Shares of the time:`;
  heads(["Lane", "Shares"]);
  for (const [lane, a, b] of parts) {
    const sum = new Map();
    for (let i = a; i < b; i++) {
      const from = Math.max(lane.begin[i], view.from), to = Math.min(i + 1 < lane.n ? lane.begin[i + 1] : span, view.to);
      const cls = lane.names[lane.classes[lane.what[i]]];
      sum.set(cls, (sum.get(cls) || 0) + to - from);
    }
    const said = [...sum].sort((p, q) => q[1] - p[1]).map(([cls, t]) => `${wordsOf(lane, cls)} ${((100 * t) / (view.to - view.from)).toFixed(1)} %`);
    body.append(make("tr", {}, make("th", { scope: "row" }, lane.title), make("td", { class: "text" }, said.join(" · "))));
  }
}
$("tablebox").addEventListener("toggle", fillTable);
function wordsOf(lane, cls) {
  if (!/^task[1-9]$/.test(cls)) return CLASS_WORDS[cls] || cls;
  // a thread has one class, whatever it was called meanwhile
  const said = new Set();
  for (const other of lanes) {
    if (other.machine !== lane.machine || other.kind !== "cpu") continue;
    other.texts.forEach((t, i) => { if (other.names[other.classes[i]] === cls && !t.startsWith("several in short")) said.add(t); });
  }
  const all = [...said];
  if (!all.length) return cls;
  const id = (t) => t.slice(t.lastIndexOf(" ["));
  const called = all.map((t) => t.slice(0, t.length - id(t).length)).reverse();
  return `${called.slice(0, 3).join(", ")}${called.length > 3 ? " …" : ""}${id(all[0])}`;
}

/* ---- the rest of the page */
function chip(colour, said) {
  const dot = make("i", {});
  dot.style.background = `var(--${colour})`;
  return make("span", { role: "listitem" }, dot, said);
}
function legend() {
  const out = $("legend");
  const used = new Set(lanes.flatMap((l) => l.classes.map((c) => l.names[c])));
  out.append(make("span", { role: "listitem" }, make("b", {}, "vCPUs")));
  const vcpu = lanes.find((l) => l.kind === "vcpu"), cpu = lanes.find((l) => l.kind === "cpu");
  if (vcpu) for (const n of vcpu.names.slice(1)) if (used.has(n)) out.append(chip(n, CLASS_WORDS[n]));
  out.append(chip("unknown", CLASS_WORDS.unknown));
  if (!cpu) return;
  for (const file of meta.files) {
    const mine = lanes.filter((l) => l.kind === "cpu" && l.machine === file.name);
    if (!mine.length) continue;
    out.append(make("span", { role: "listitem" }, make("b", {}, `CPUs of ${file.name}`)));
    for (const n of cpu.names.slice(1)) {
      if (mine.some((l) => l.classes.includes(l.names.indexOf(n)))) out.append(chip(n, /^task[1-9]$/.test(n) ? wordsOf(mine[0], n) : CLASS_WORDS[n]));
    }
  }
}
function header() {
  $("title").textContent = meta.files.map((f) => f.name).join(" and ");
  document.title = `${$("title").textContent} - Counterpoint`;
  let said = `${meta.events_placed.toLocaleString("en")} events of ${meta.files.length} machines on one timeline over ${took(span)}`;
  if (meta.unproved) said += `; ${meta.unproved.toLocaleString("en")} are placed where nothing proves it`;
  if (meta.unplaced) said += `; ${meta.unplaced.toLocaleString("en")} are left out, for no clock map is known for them`;
  if (meta.lost) said += `; events were lost ${meta.lost.toLocaleString("en")} times`;
  if (meta.joined_below) said += `. Of so many steps, runs of short ones within ${took(meta.joined_below)} are drawn as one`;
  $("summary").textContent = `${said}.`;
  for (const v of meta.proof) {
    const e = v.epochs[0];
    $("verdicts").append(make("li", { class: "chip" }, `${v.guest} vCPU ${v.cpu}: `, make("span", { class: v.verdict }, v.verdict), e && e.width_ns !== null ? ` to within ${ns(e.width_ns)}` : ""));
  }
}
const STATE_CLASS = { guest: "guest-task", kernel: "kernel", user: "user", outside: "outside", polling: "polling", halted: "halted", blocked: "blocked", waiting: "waiting", unknown: "unknown" };
function bar(parts, total, label) {
  const out = make("div", { class: "bar", role: "img", "aria-label": label });
  for (const [colour, value, said] of parts) {
    if (value <= 0) continue;
    const part = make("i", { title: said });
    part.style.width = `${(100 * value) / Math.max(total, 1)}%`;
    part.style.background = `var(--${colour})`;
    out.append(part);
  }
  return out;
}
function residency() {
  const out = $("residency"), vcpus = meta.measured.vcpus;
  if (!vcpus.length) { out.append(make("p", {}, "No vCPU's thread is known.")); return; }
  const states = Object.keys(STATE_CLASS).filter((s) => vcpus.some((v) => v.states[s]));
  const body = make("tbody", {});
  for (const v of vcpus) {
    const parts = states.map((s) => [STATE_CLASS[s], v.states[s] || 0, `${s}: ${ns(v.states[s])}`]);
    const row = make("tr", {}, make("th", { scope: "row" }, `${v.guest} vCPU ${v.cpu}`), make("td", {}, bar(parts, v.took, parts.map((p) => p[2]).join(", "))));
    for (const s of states) row.append(make("td", { class: "num" }, `${((100 * v.states[s]) / Math.max(v.took, 1)).toFixed(1)} %`));
    row.append(make("td", { class: "text" }, v.waited_for.filter((w) => w.tid !== null).map((w) => `${w.task} [${w.tid}] ${ns(w.took)}`).join(" · ")));
    body.append(row);
  }
  out.append(make("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "States of the vCPUs" }, make("table", {}, make("thead", {}, make("tr", {}, make("th", {}, "vCPU"), make("th", {}, "all its time"), ...states.map((s) => make("th", { class: "num" }, s === "guest" ? "guest mode" : s)), make("th", {}, "who ran while it waited"))), body)));
}
const CAUSE = { "host task": "waiting", exit: "kernel", vmm: "user", outside: "outside", "host irq": "irq", "host softirq": "softirq", polling: "polling", halted: "halted", blocked: "blocked", "guest task": "guest-task", "guest idle": "guest-idle", "guest softirq": "guest-irq", "guest irq": "guest-irq", "guest lock": "task3", asleep: "halted", unexplained: "unknown" };
function worst() {
  const out = $("worst");
  if (!meta.worst.length) { out.append(make("p", {}, "No wakeup of a guest's task is on the timeline (sched_waking and sched_switch tell of them).")); return; }
  out.append(make("p", { class: "note" }, `From the waking of a guest's task, or from when its timer was due, to when it ran; the ${meta.worst.length} longest. Every nanosecond is given to one cause.`));
  meta.worst.forEach((one, rank) => {
    const parts = one.causes.map((c) => [CAUSE[c.kind] || "task", c.took_ns, `${c.text}: ${ns(c.took_ns)}`]);
    const lane = laneOf(one.guest, one.cpu, "vcpu") || laneOf(one.guest, one.cpu, "cpu");
    const title = `${one.guest}: ${one.task} [${one.tid}]`;
    const body = make("div", {});
    const block = make("details", { class: "case" }, make("summary", {}, make("span", {}, `${rank + 1}. ${title}`), make("span", { class: "took" }, ns(one.took_ns)), bar(parts, one.took_ns, parts.slice(0, 6).map((p) => p[2]).join(", "))), body);
    const fillBody = () => {
      if (body.childElementCount) return;
      body.append(make("p", {}, make("button", { type: "button", class: "link", onclick: () => show(one.begin, one.end, lane, title) }, "Show it in the timeline"), ` · ran on CPU ${one.cpu} at host stamp ${one.stamp}, ${one.by_timer ? "late by its timer" : "late since it was woken"}; its ends are known to ${one.bound_ns === null ? "no bound" : ns(one.bound_ns)}`));
      const rows = make("tbody", {});
      for (const c of one.causes) rows.append(make("tr", {}, make("td", { class: "num" }, ns(c.took_ns)), make("td", { class: "num" }, `${((100 * c.took_ns) / Math.max(one.took_ns, 1)).toFixed(1)} %`), make("td", { class: "text" }, c.text)));
      body.append(make("div", { class: "wide" }, make("table", {}, make("thead", {}, make("tr", {}, make("th", { class: "num" }, "took"), make("th", { class: "num" }, "share"), make("th", {}, "given to"))), rows)));
      const steps = make("tbody", {});
      for (const p of one.pieces) {
        const at = p.cpu === null ? lane : laneOf(one.guest, p.cpu, "vcpu") || lane;
        steps.append(make("tr", {}, make("td", {}, make("button", { type: "button", class: "link", onclick: () => show(p.begin, p.end, at, p.text) }, stampOf(p.begin))), make("td", { class: "num" }, took(p.end - p.begin)), make("td", {}, p.cpu === null ? "" : `vCPU ${p.cpu}`), make("td", { class: "text" }, p.text), make("td", {}, p.event || "")));
      }
      const more = one.pieces_in_all > one.pieces.length ? ` (the first ${one.pieces.length} of ${one.pieces_in_all})` : "";
      body.append(make("details", {}, make("summary", {}, `Piece by piece${more}`), make("div", { class: "wide", tabindex: "0", role: "region", "aria-label": `Pieces of case ${rank + 1}` }, make("table", {}, make("thead", {}, make("tr", {}, ...["from host stamp", "took", "on", "given to", "proved by"].map((h) => make("th", {}, h)))), steps))));
    };
    block.addEventListener("toggle", fillBody);
    block.fillBody = fillBody;
    out.append(block);
  });
}
function proof() {
  const out = $("proof");
  for (const v of meta.proof) {
    const lane = laneOf(v.guest, v.cpu, "vcpu") || laneOf(v.guest, v.cpu, "cpu");
    const block = make("div", { class: "vcpu" }, make("h3", {}, `${v.guest} CPU ${v.cpu}, thread ${v.tid === null ? "not known" : v.tid} of ${v.parent}: `, make("span", { class: v.verdict }, v.verdict)));
    for (const e of v.epochs) {
      const facts = [];
      if (v.epochs_in_all > 1) facts.push(`epoch ${e.number + 1} of ${v.epochs_in_all}: ${e.verdict}`);
      facts.push(e.offset === null ? "no offset" : `offset ${e.offset} ${v.unit}${e.source ? ` by ${e.source}` : ""}`);
      if (e.feasible) facts.push(`feasible from ${signed(e.feasible[0])} to ${signed(e.feasible[1])} around it${e.width_ns === null ? "" : `, ${ns(e.width_ns)} wide`}`);
      if (e.anchors.length) facts.push(`narrowed by ${e.anchors.join(", ")}`);
      facts.push(`${e.inside.toLocaleString("en")} events inside, ${e.violations.toLocaleString("en")} outside, ${e.unknown.toLocaleString("en")} unknown`);
      block.append(make("p", {}, `${facts.join("; ")}.`));
      if (e.narrowing) block.append(make("div", { class: "wide plot" }, band(v, e, lane)));
      else block.append(make("p", { class: "note" }, `The band is not drawn: ${e.not_drawn}.`));
      for (const w of e.witnesses) {
        const said = `${w.side === "low" ? "lower" : "upper"} bound ${signed(w.bound)}: ${w.event} at guest stamp ${w.guest_stamp}`;
        const from = w.from === null ? w.at : w.from, to = w.to === null ? w.at : w.to;
        block.append(make("p", {}, "Witness of the ", w.at === null ? said : make("button", { type: "button", class: "link", onclick: () => { cursor = w.at; show(Math.min(from, w.at), Math.max(to, w.at), lane, said); } }, said), w.events[0] || w.events[1] ? `, between ${w.events[0] || "what was not seen"} and ${w.events[1] || "what was not seen"}` : ""));
      }
    }
    if (v.epochs_in_all > v.epochs.length) block.append(make("p", { class: "note" }, `${v.epochs_in_all - v.epochs.length} more epochs are not drawn.`));
    for (const c of v.claims) {
      const line = make("p", {}, `Claim of ${c.source}: ${c.said}: `, make("span", { class: c.verdict }, c.verdict), c.verdict === "proved" ? `, ${c.inside.toLocaleString("en")} events inside` : `${c.reason ? `, ${c.reason}` : ""}`);
      if (c.against) {
        const a = c.against, said = `counter-example: ${a.event} at guest stamp ${a.guest_stamp}, where it would lie outside`;
        line.append("; ", a.at === null ? said : make("button", { type: "button", class: "link", onclick: () => { cursor = a.at; show(a.from === null ? a.at : a.from, a.to === null ? a.at : a.to, lane, said); } }, said));
      }
      block.append(line);
    }
    for (const note of v.notes) block.append(make("p", { class: "note" }, note));
    out.append(block);
  }
}
const signed = (n) => (n > 0 ? `+${n.toLocaleString("en")}` : n.toLocaleString("en"));
function band(v, e, lane) {
  const b = e.narrowing, W = 860, H = 250, L = 74, R = 150, T = 12, B = 30;
  const unit = e.unit_ns || 1, name = e.unit_ns ? "ns" : "ticks";
  const claims = e.claimed.map((c) => ({ ...v.claims[c.claim], ...c }));
  const finals = [b.lo[b.lo.length - 1], b.hi[b.hi.length - 1], ...(e.feasible || [])].map((n) => Math.abs(n) * unit).filter((n) => n > 0);
  const linear = Math.max(1, Math.min(...(finals.length ? finals : [1])) / 2);
  const bend = (n) => Math.asinh((n * unit) / linear);
  const known = b.lo.filter((_, i) => !b.lo_open[i]).concat(b.hi.filter((_, i) => !b.hi_open[i])).map((n) => Math.abs(bend(n)));
  const most = Math.max(1, ...known) * 1.06;
  const y = (n) => T + ((most - Math.max(-most, Math.min(bend(n), most))) / (2 * most)) * (H - T - B);
  const x = (count) => L + (Math.log(count) / Math.max(Math.log(Math.max(b.events, 2)), 1e-9)) * (W - L - R);
  const label = `What is left of the offsets: after 1 event from ${b.lo_open[0] ? "open" : text(b.lo[0] * unit, name)} to ${b.hi_open[0] ? "open" : text(b.hi[0] * unit, name)}, after all ${b.events} from ${text(b.lo[b.lo.length - 1] * unit, name)} to ${text(b.hi[b.hi.length - 1] * unit, name)}`;
  const svg = draw("svg", { viewBox: `0 0 ${W} ${H}`, role: "group", "aria-label": label });
  for (let k = 0; 10 ** k <= b.events; k++) {
    svg.append(draw("line", { class: "grid", x1: x(10 ** k), x2: x(10 ** k), y1: T, y2: H - B }), draw("text", { x: x(10 ** k), y: H - B + 14, "text-anchor": "middle" }, (10 ** k).toLocaleString("en")));
  }
  svg.append(draw("text", { x: (L + W - R) / 2, y: H - 3, "text-anchor": "middle" }, "events"));
  const rows = [];
  for (let k = 0; linear * 10 ** k < Math.sinh(most) * linear; k++) for (const by of [1, -1]) rows.push((by * 10 ** (Math.ceil(Math.log10(linear)) + k)) / unit);
  rows.unshift(0);
  const used = [];
  for (const n of rows) {
    const at = y(n);
    if (Math.abs(bend(n)) > most || used.some((u) => Math.abs(u - at) < 13)) continue;
    used.push(at);
    svg.append(draw("line", { class: n ? "grid" : "zero", x1: L, x2: W - R, y1: at, y2: at }), draw("text", { x: L - 6, y: at + 4, "text-anchor": "end" }, n ? `${n > 0 ? "+" : "−"}${short(Math.abs(n * unit), name)}` : "offset"));
  }
  const upper = [], lower = [];
  b.count.forEach((count, i) => {
    const end = i + 1 < b.count.length ? b.count[i + 1] : b.events;
    upper.push([x(count), b.hi_open[i] ? T : y(b.hi[i])], [x(end), b.hi_open[i] ? T : y(b.hi[i])]);
    lower.push([x(count), b.lo_open[i] ? H - B : y(b.lo[i])], [x(end), b.lo_open[i] ? H - B : y(b.lo[i])]);
  });
  svg.append(draw("polygon", { class: "band", points: [...upper, ...lower.reverse()].map((p) => p.map((n) => n.toFixed(1)).join(",")).join(" ") }));
  if (e.feasible && e.by_windows) {
    svg.append(draw("rect", { class: "kept", x: W - R, y: y(e.feasible[1]), width: 26, height: Math.max(2, y(e.feasible[0]) - y(e.feasible[1])) }), draw("text", { x: W - R + 30, y: y(e.feasible[1]) - 4 }, "with anchors"));
  }
  let place = -99;
  for (const c of [...claims].sort((p, q) => p.beside - q.beside).reverse()) {
    const at = y(c.beside), beyond = Math.abs(bend(c.beside)) > most;
    place = Math.max(at + 4, place + 13);
    svg.append(draw("line", { class: `claim ${c.verdict}`, x1: L, x2: W - R + 26, y1: at, y2: at }), draw("text", { class: "ink", x: W - R + 30, y: place }, `${beyond ? (c.beside > 0 ? "↑ " : "↓ ") : ""}${c.source.slice(0, 18)}`, draw("title", {}, `${c.source}: ${c.said}, ${c.verdict}`)));
  }
  b.count.forEach((count, i) => {
    for (const [values, openly, side] of [[b.lo, b.lo_open, "lower"], [b.hi, b.hi_open, "upper"]]) {
      if (openly[i] || (i && values[i] === values[i - 1] && openly[i] === openly[i - 1])) continue;
      const final = values[i] === values[values.length - 1];
      const said = `event ${count.toLocaleString("en")}, ${b.event[i]}, moves the ${side} bound to ${text(values[i] * unit, name)}${final ? ": a witness" : ""}`;
      const dot = draw("circle", { class: final ? "dot witness" : "dot", cx: x(count), cy: y(values[i]), r: final ? 5 : 3.2 }, draw("title", {}, said));
      if (b.at[i] === null) { svg.append(dot); continue; }
      const link = draw("a", { href: "#timeline", role: "button", "aria-label": said, tabindex: final ? "0" : "-1" }, dot);
      const follow = (event) => {
        event.preventDefault();
        cursor = b.at[i];
        // the run window around it, where the lane tells
        const k = lane ? stepAt(lane, cursor) : -1;
        const d = k >= 0 ? describe(lane, k) : { from: cursor, to: cursor };
        show(d.from, d.to, lane, said);
      };
      link.addEventListener("click", follow);
      link.addEventListener("keydown", (event) => { if (event.key === " " || event.key === "Enter") follow(event); });
      svg.append(link);
    }
  });
  return svg;
}
function short(value, unit) {
  if (unit !== "ns") return value >= 1e6 ? `${value / 1e6}M` : value >= 1e3 ? `${value / 1e3}k` : `${+value.toFixed(2)}`;
  const [by, name] = value < 999.5 ? [1, "ns"] : value < 999.5e3 ? [1e3, "µs"] : value < 999.5e6 ? [1e6, "ms"] : [1e9, "s"];
  return `${+(value / by).toPrecision(4)} ${name}`;
}
function spread() {
  const out = $("spread");
  const all = meta.measured.groups.flatMap((g) => g.rows).flatMap((r) => r.histogram).map(([least]) => least).filter((n) => n > 0);
  if (!all.length) { out.append(make("p", {}, "No exit and no latency was measured.")); return; }
  const first = Math.floor(Math.log2(Math.min(...all))), last = Math.floor(Math.log2(Math.max(...all))) + 1;
  const W = 420, H = 46, x = (power) => ((power - first) / Math.max(1, last - first)) * (W - 2) + 1;
  const decades = [];
  for (let k = Math.ceil(first * Math.log10(2)); k <= last * Math.log10(2); k++) decades.push(k);
  const axis = () => {
    const svg = draw("svg", { class: "hist", viewBox: `0 0 ${W} 16`, "aria-hidden": "true" });
    let free = -1;
    for (const k of decades) {
      const at = x(k / Math.log10(2));
      if (at < free) continue;
      if (at > W - 40) continue;
      svg.append(draw("text", { x: at, y: 12 }, short(10 ** k, meta.unit)));
      free = at + 44;
    }
    return svg;
  };
  for (const group of meta.measured.groups) {
    if (!group.rows.length) continue;
    const body = make("tbody", {});
    const highest = Math.log1p(Math.max(...group.rows.flatMap((r) => r.histogram.map(([, n]) => n)), 1));
    for (const row of group.rows) {
      const svg = draw("svg", { class: "hist", viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": row.histogram.map(([least, n]) => `from ${ns(least)}: ${n}`).join(", ") });
      for (const k of decades) svg.append(draw("line", { class: "grid", x1: x(k / Math.log10(2)), x2: x(k / Math.log10(2)), y1: 0, y2: H }));
      for (const [least, n] of row.histogram) {
        const power = least > 0 ? Math.log2(least) : first, h = Math.max(1.5, (Math.log1p(n) / highest) * (H - 4));
        svg.append(draw("rect", { class: "count", x: x(power) + 0.6, y: H - h, width: Math.max(1, x(power + 1) - x(power) - 1.2), height: h }, draw("title", {}, `${ns(least)} to ${ns(least * 2)}: ${n.toLocaleString("en")}`)));
      }
      svg.append(draw("line", { class: "grid", x1: 0, x2: W, y1: H - 0.5, y2: H - 0.5 }));
      body.append(make("tr", {}, make("th", { scope: "row" }, row.name), make("td", {}, svg), ...[row.count.toLocaleString("en"), ns(row.total), ns(row.mean), ns(row.p50), ns(row.p99), ns(row.max)].map((c) => make("td", { class: "num" }, c))));
    }
    out.append(make("h3", {}, group.title), make("div", { class: "wide", tabindex: "0", role: "region", "aria-label": group.title }, make("table", {}, make("thead", {}, make("tr", {}, make("th", {}, ""), make("th", {}, axis()), ...["count", "total", "mean", "p50", "p99", "max"].map((h) => make("th", { class: "num" }, h)))), body)));
    if (group.more) out.append(make("p", { class: "note" }, `and ${group.more} reasons more (counterpoint stats has them)`));
  }
}
function about() {
  const body = make("tbody", {});
  for (const f of meta.files) body.append(make("tr", {}, make("th", { scope: "row" }, f.name), make("td", { class: "text" }, f.file), make("td", {}, f.parent ? `guest of ${f.parent}` : "host"), make("td", {}, f.clock), make("td", { class: "num" }, f.events.toLocaleString("en"))));
  const out = $("about");
  out.append(make("div", { class: "wide" }, make("table", {}, make("thead", {}, make("tr", {}, ...["machine", "file", "is", "clock", "events"].map((h) => make("th", {}, h)))), body)));
  out.append(make("p", { class: "note" }, `${meta.rate ? `Times are ns of the first host's clock, by ${meta.rate}` : "How long a tick of the host's clock is, is not known: times are ticks"}. Host stamps are that clock's own values: counterpoint show --around STAMP has the events there. Made by Counterpoint ${meta.version}.`));
  for (const w of meta.warnings) out.append(make("p", { class: "note" }, w));
}

/* ---- dark and light, paper */
const THEMES = ["auto", "light", "dark"];
let theme = 0, printing = false;
const darkly = matchMedia("(prefers-color-scheme: dark)");
function dress() {
  const dark = !printing && (THEMES[theme] === "dark" || (THEMES[theme] === "auto" && darkly.matches));
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  $("theme").textContent = `Colours: ${THEMES[theme]}`;
  readPalette();
  later();
}
$("theme").addEventListener("click", () => { theme = (theme + 1) % THEMES.length; dress(); });
darkly.addEventListener("change", dress);
window.addEventListener("beforeprint", () => {
  printing = true;
  for (const one of document.querySelectorAll("details.case")) {
    one.fillBody();
    one.wasOpen = one.open;
    one.open = true;
  }
  dress();
  resize();
  paint();
});
window.addEventListener("afterprint", () => {
  printing = false;
  for (const one of document.querySelectorAll("details.case")) one.open = one.wasOpen;
  dress();
  resize();
});
window.addEventListener("resize", resize);

/* ---- begin */
header();
legend();
dress();
resize();
(async () => {
  const buffer = await inflate($("overview").textContent);
  shares = new Uint8Array(buffer);
  let at = 0;
  for (const lane of lanes) { lane.sharesAt = at; at += buckets * lane.names.length; }
  paint();
})();
function load(buffer) {
  const where = meta.exact;
  const n = where["times.low"][1];
  times = new Float64Array(n);
  let t = 0;
  column(buffer, where, "times", (i, d) => { t += d; times[i] = t; });
  const total = where["at.low"][1], begins = new Float64Array(total), whats = new Uint32Array(total);
  const starts = new Map();
  let sum = 0;
  for (const lane of lanes) { starts.set(sum, lane); sum += lane.steps; }
  let p = 0;
  column(buffer, where, "at", (i, d) => { if (starts.has(i)) p = 0; p += d; begins[i] = times[p]; });
  column(buffer, where, "what", (i, d) => { whats[i] = d; });
  sum = 0;
  for (const lane of lanes) {
    lane.begin = begins.subarray(sum, sum + lane.steps);
    lane.what = whats.subarray(sum, sum + lane.steps);
    lane.n = lane.steps;
    sum += lane.steps;
  }
  if (meta.events.whole) {
    const m = where["event.at.low"][1];
    eventAt = new Uint32Array(m);
    const kind = new Uint16Array(m), of = new Uint16Array(m), counts = new Uint32Array(lanes.length + 1);
    let q = 0;
    column(buffer, where, "event.at", (i, d) => { q += d; eventAt[i] = q; });
    column(buffer, where, "event.kind", (i, d) => { kind[i] = d; });
    column(buffer, where, "event.lane", (i, d) => { of[i] = d; counts[d]++; });
    for (const lane of lanes) {
      lane.eventAt = new Float64Array(counts[lane.number]);
      lane.eventKind = new Uint16Array(counts[lane.number]);
    }
    const next = new Uint32Array(lanes.length);
    for (let i = 0; i < m; i++) {
      const lane = lanes[of[i]], k = next[of[i]]++;
      lane.eventAt[k] = times[eventAt[i]];
      lane.eventKind[k] = kind[i];
    }
    eventAt = null;
  }
  loaded = true;
  index();
  paint();
  fillTable();
  document.documentElement.dataset.loaded = Math.round(performance.now());
}
document.addEventListener("DOMContentLoaded", async () => {
  residency();
  worst();
  proof();
  spread();
  about();
  const source = $("exact");
  const buffer = await inflate(source.textContent);
  source.remove();
  load(buffer);
});
})();
