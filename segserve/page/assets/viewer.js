// Draws a response (see `server.py`). Opacity, switches and the pointer send nothing to the server.
// Gradio calls this once as the body of a function, with `element`, `props` and `watch`. Whatever comes from the server
// is put in as text, never as HTML.

const BACKGROUND = props.background;
const state = { response: null, reported: null, ids: null, hidden: new Set(), opacity: props.opacity, before: 0, at: null, turn: 0 };

const part = (name) => element.querySelector(`[data-part="${name}"]`);
const shareText = (fraction) => `${(100 * fraction).toFixed(1)} %`;
const msText = (ms) => (ms < 1000 ? `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);
const countText = (count) => count.toLocaleString("en").replaceAll(",", "\u202f");

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const isPhone = () => matchMedia("(max-width: 640px)").matches;
const isTouched = matchMedia("(pointer: coarse)").matches;
const INVITATION = `${isTouched ? "Tap" : "Point at"} the picture to see a class.`;

async function show(value) {
  element.querySelector(".viewer").removeAttribute("aria-busy");
  const turn = ++state.turn; // a response that is overtaken while its pictures are decoded is dropped
  const [picture, ids] = value?.picture ? await Promise.all([decoded(value.picture), decoded(value.ids)]) : [];
  if (turn !== state.turn) return;
  state.response = picture ? value : null;
  part("result").hidden = !picture;
  if (value) state.reported = null;
  drawProblem(value?.title ? value : state.reported);
  if (!picture) return;
  drawResponse(value, picture, ids);
  if (isPhone()) element.scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion)").matches ? "auto" : "smooth" });
}

function drawProblem(problem) {
  part("empty").hidden = Boolean(problem ?? state.response);
  part("problem").hidden = !problem;
  part("problem-title").textContent = problem?.title ?? "";
  part("problem-detail").textContent = problem?.detail ?? "";
}

// A problem of the browser, not the server: the picture stays, and the problem is shown until the next response.
function report(problem) {
  state.reported = problem;
  drawProblem(problem);
}

function drawResponse(response, picture, ids) {
  for (const name of ["picture", "colors", "names"]) Object.assign(part(name), { width: response.width, height: response.height });
  part("stage").style.setProperty("--ratio", response.width / response.height);
  part("picture").getContext("2d").drawImage(picture, 0, 0);
  state.ids = classIds(ids);
  part("opacity").value = 100 * state.opacity;
  part("rows").replaceChildren(...response.classes.map(row));
  const steps = Object.entries(response.steps_ms).map(([name, ms]) => `${msText(ms)} ${name}`);
  part("steps").textContent = [`By ${response.model}`, ...steps].join(" · ");
  setOpacity(state.opacity);
  setBefore(state.before);
  drawColors();
  point(null);
}

async function decoded(url) {
  const blob = await (await fetch(url)).blob();
  return createImageBitmap(blob, { colorSpaceConversion: "none" });
}

function classIds(bitmap) {
  const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const rgba = context.getImageData(0, 0, bitmap.width, bitmap.height).data;
  const grey = new Uint8Array(rgba.length / 4);
  for (let index = 0; index < grey.length; index++) grey[index] = rgba[4 * index];
  return grey;
}

// As in `overlay.py`: bright colours, and outlines that are white inside of a region and black outside.
const bright = (color) => (Math.max(...color) ? color.map((value) => Math.round((255 * value) / Math.max(...color))) : [255, 255, 255]);
const asPixel = (color) => new Uint32Array(Uint8Array.of(...color, 255).buffer)[0]; // the bytes R, G, B, A in memory
const [WHITE, BLACK] = [asPixel([255, 255, 255]), asPixel([0, 0, 0])];

function drawColors() {
  const { width, height, classes } = state.response;
  const painted = new Uint32Array(256); // by class id; 0 is transparent
  const shown = new Uint8Array(256).fill(BACKGROUND); // by class id, the id to draw: hidden classes are background
  for (const { id, color } of classes) {
    if (id === BACKGROUND || state.hidden.has(id)) continue;
    painted[id] = asPixel(bright(color));
    shown[id] = id;
  }
  const image = new ImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  for (let index = 0; index < pixels.length; index++) pixels[index] = painted[state.ids[index]];
  drawOutlines(pixels, shown, width, height);
  part("colors").getContext("2d").putImageData(image, 0, 0);
  drawNames();
}

// Each on the widest region of its class.
function drawNames() {
  const { width, height, classes } = state.response;
  const context = part("names").getContext("2d");
  const size = Math.max(12, Math.floor(Math.min(width, height) / 18));
  const within = (value, margin, limit) => Math.min(Math.max(value, margin), limit - margin);
  context.clearRect(0, 0, width, height);
  Object.assign(context, { font: `600 ${size}px sans-serif`, textAlign: "center", textBaseline: "middle" });
  Object.assign(context, { lineJoin: "round", lineWidth: size / 5, strokeStyle: "#000", fillStyle: "#fff" });
  for (const { id, label, at } of classes) {
    const half = context.measureText(label).width / 2 + 3;
    if (id === BACKGROUND || state.hidden.has(id) || !at || 2 * half > width || 2 * size > height) continue;
    const place = [within(at[0], half, width), within(at[1], size, height)];
    context.strokeText(label, ...place);
    context.fillText(label, ...place);
  }
}

function drawOutlines(pixels, shown, width, height) {
  const lines = Math.max(1, Math.round(Math.min(width, height) / 250));
  for (const [right, down] of [[1, 0], [0, 1]]) {
    for (let y = 0; y < height - down; y++) {
      for (let x = 0; x < width - right; x++) {
        const index = y * width + x;
        const [before, after] = [shown[state.ids[index]], shown[state.ids[index + right + down * width]]];
        if (before === after) continue;
        for (let step = 0; step < lines; step++) {
          const start = Math.max(y - step * down, 0) * width + Math.max(x - step * right, 0);
          const end = Math.min(y + (step + 1) * down, height - 1) * width + Math.min(x + (step + 1) * right, width - 1);
          pixels[start] = before > after ? WHITE : BLACK;
          pixels[end] = after > before ? WHITE : BLACK;
        }
      }
    }
  }
}

function setOpacity(opacity) {
  state.opacity = opacity;
  part("colors").style.opacity = opacity;
  part("opacity-value").textContent = `${Math.round(100 * opacity)} %`;
}

// The part of the picture, from the left, that is shown without its classes.
function setBefore(fraction) {
  state.before = fraction;
  part("before").value = 100 * fraction;
  for (const name of ["colors", "names"]) part(name).style.clipPath = `inset(0 0 0 ${100 * fraction}%)`;
  part("before-value").textContent = `${Math.round(100 * fraction)} %`;
}

function row({ id, label, color, pixels, fraction, box, confidence }) {
  const swatch = make("span", { class: "swatch" });
  swatch.style.background = `rgb(${bright(color)})`;
  const bar = make("span", { class: "bar", "aria-hidden": "true" });
  bar.style.setProperty("--share", fraction);
  const cell = (name, ...content) => make("td", { role: "cell", class: name, "data-name": name }, ...content);
  const [left, top, right, bottom] = box;
  return make(
    "tr",
    { role: "row", "data-class": id },
    make("th", { role: "rowheader", scope: "row" }, id === BACKGROUND ? name(label, swatch) : toggle(id, label, swatch)),
    cell("share", bar, shareText(fraction)),
    cell("pixels number", countText(pixels)),
    cell("confidence number", shareText(confidence)),
    cell("box number", `${left}, ${top} – ${right}, ${bottom}`),
  );
}

const name = (label, swatch) => make("span", { class: "name" }, swatch, label);

function toggle(id, label, swatch) {
  const input = make("input", { type: "checkbox", role: "switch", "data-switch": id });
  input.checked = !state.hidden.has(id);
  return make("label", { class: "name" }, swatch, label, input, make("span", { class: "switch", "aria-hidden": "true" }));
}

// The pixel [x, y] that is pointed at, or null.
function point(at) {
  state.at = at;
  const id = at && state.ids[at[1] * state.response.width + at[0]];
  const found = state.response.classes.find((info) => info.id === id);
  part("readout").textContent = found ? `${found.label} at ${at[0]}, ${at[1]}` : INVITATION;
  for (const line of part("rows").children) line.classList.toggle("pointed", Number(line.dataset.class) === found?.id);
}

function pixelUnder({ clientX, clientY }) {
  const { left, top, width, height } = part("colors").getBoundingClientRect();
  const x = Math.floor(((clientX - left) / width) * state.response.width);
  const y = Math.floor(((clientY - top) / height) * state.response.height);
  return x >= 0 && y >= 0 && x < state.response.width && y < state.response.height ? [x, y] : null;
}

function placePointer(shown) {
  const pointer = part("pointer");
  pointer.hidden = !shown;
  if (!shown) return;
  pointer.style.left = `${(100 * (state.at[0] + 0.5)) / state.response.width}%`;
  pointer.style.top = `${(100 * (state.at[1] + 0.5)) / state.response.height}%`;
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function movePointer(arrow) {
  const { width, height } = state.response;
  const step = Math.max(1, Math.round(Math.max(width, height) / 50));
  const [x, y] = state.at ?? [width >> 1, height >> 1];
  const within = (value, limit) => Math.min(limit - 1, Math.max(0, value));
  point([within(x + step * arrow[0], width), within(y + step * arrow[1], height)]);
  placePointer(true);
}

const DOWNLOADS = {
  overlay: { ending: "overlay.png", blob: overlay },
  labels: { ending: "labels.png", blob: async () => (await fetch(state.response.labels)).blob() },
  coco: { ending: "coco.json", blob: () => new Blob([JSON.stringify(state.response.coco)], { type: "application/json" }) },
};

// The picture as it is seen, with the opacity and the switches as they are.
function overlay() {
  const canvas = new OffscreenCanvas(state.response.width, state.response.height);
  const context = canvas.getContext("2d");
  context.drawImage(part("picture"), 0, 0);
  context.globalAlpha = state.opacity;
  context.drawImage(part("colors"), 0, 0);
  context.globalAlpha = 1;
  context.drawImage(part("names"), 0, 0);
  return canvas.convertToBlob({ type: "image/png" });
}

async function save({ ending, blob }) {
  const url = URL.createObjectURL(await blob());
  make("a", { href: url, download: `${state.response.stem}-${ending}` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

element.addEventListener("input", ({ target }) => {
  if (target.matches('[data-part="opacity"]')) setOpacity(target.value / 100);
  if (target.matches('[data-part="before"]')) setBefore(target.value / 100);
  if (!target.matches("[data-switch]")) return;
  const id = Number(target.dataset.switch);
  if (target.checked) state.hidden.delete(id);
  else state.hidden.add(id);
  drawColors();
});
element.addEventListener("click", ({ target }) => {
  const download = target.closest("[data-download]");
  if (download) save(DOWNLOADS[download.dataset.download]);
});
for (const kind of ["pointermove", "pointerdown"]) {
  element.addEventListener(kind, (event) => {
    if (!event.target.closest('[data-part="stage"]')) return;
    point(pixelUnder(event));
    placePointer(false);
  });
}
element.addEventListener("keydown", (event) => {
  if (!event.target.matches('[data-part="stage"]') || !ARROWS[event.key]) return;
  event.preventDefault();
  movePointer(ARROWS[event.key]);
});
element.addEventListener("focusout", ({ target }) => {
  if (target.matches('[data-part="stage"]')) placePointer(false);
});
watch("value", () => show(props.value));
show(props.value);
