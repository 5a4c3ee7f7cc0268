// Segments pictures in the browser: model.onnx in ONNX Runtime, compiled to WebAssembly. Nothing is sent.

import * as ort from "./ort.wasm.bundle.min.mjs";

const MAX_PIXELS = 4e6; // the model needs about 100 bytes of memory a pixel
const BACKGROUND = 0;
const COLOR_ALPHA = 115; // of 255, as the overlays of segserve
const OUTLINE = [255, 255, 255, 255];

ort.env.wasm.numThreads = 1; // threads need headers that a plain file server does not send
ort.env.wasm.proxy = true; // computes in a worker, so that the page stays responsive

const part = (id) => document.getElementById(id);
const megabytes = (bytes) => (bytes / 1e6).toFixed(1);
const percent = (share) => `${(100 * share).toFixed(1)} %`;

function showStatus(text, fraction) {
  part("status").textContent = text;
  part("bar").hidden = fraction === undefined;
  if (fraction >= 0) part("bar").value = fraction;
  else part("bar").removeAttribute("value"); // pending, for an unknown time
}

function showProblem(text) {
  part("problem").textContent = text;
  part("problem").hidden = !text;
}

async function fetched(name) {
  const response = await fetch(name).catch(() => null);
  if (response?.ok) return response;
  const reason = response ? `status ${response.status}` : "the server does not respond";
  throw new Error(`${name} cannot be loaded (${reason}). "make browser" writes it beside this page.`);
}

async function downloaded(name) {
  const response = await fetched(name);
  const total = Number(response.headers.get("Content-Length"));
  const chunks = [];
  let count = 0;
  for (const reader = response.body.getReader(); ;) {
    const { done, value } = await reader.read();
    if (done) return new Uint8Array(await new Blob(chunks).arrayBuffer());
    chunks.push(value);
    count += value.length;
    const text = total ? `${megabytes(count)} of ${megabytes(total)} MB` : `${megabytes(count)} MB`;
    showStatus(`Loading the network: ${text}`, total ? count / total : -1);
  }
}

/** The description of the model ({name, version, labels, colors}) and its session. */
async function loadModel() {
  showStatus("Loading the network", -1);
  const description = await (await fetched("model.json")).json();
  const content = await downloaded("model.onnx");
  showStatus("Preparing the network", -1);
  const session = await ort.InferenceSession.create(content, { logSeverityLevel: 3 });
  showStatus(`${description.name} ${description.version} is ready.`);
  return { ...description, session };
}

/** Draws a picture, scaled down if it is large, on the canvas. Returns its size before and its pixels, RGB. */
async function drawPicture(file) {
  const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" }).catch(() => null);
  if (!bitmap) throw new Error(`${file.name} is not a picture that this browser can read.`);
  const { width, height } = bitmap;
  const scale = Math.min(1, Math.sqrt(MAX_PIXELS / (width * height)));
  const canvas = part("picture");
  canvas.width = Math.max(1, Math.floor(scale * width));
  canvas.height = Math.max(1, Math.floor(scale * height));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.fillStyle = "#fff"; // below transparent pixels, as the server has it
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  const rgba = context.getImageData(0, 0, canvas.width, canvas.height).data;
  const rgb = new Uint8Array((rgba.length / 4) * 3);
  for (let from = 0, to = 0; from < rgba.length; from += 4) {
    rgb[to++] = rgba[from];
    rgb[to++] = rgba[from + 1];
    rgb[to++] = rgba[from + 2];
  }
  return { before: [width, height], size: [canvas.width, canvas.height], rgb };
}

/** The class id of every pixel, row by row. */
async function labelMap(session, { size: [width, height], rgb }) {
  const image = new ort.Tensor("uint8", rgb, [1, height, width, 3]);
  const { label_map } = await session.run({ image });
  return label_map.data;
}

/** Draws translucent colours, with an outline around every region; the background stays as it is. */
function drawClasses(labels, [width, height], colors) {
  const canvas = Object.assign(part("classes"), { width, height });
  const image = new ImageData(width, height);
  for (let index = 0; index < labels.length; index++) {
    const id = labels[index];
    const isLastColumn = (index + 1) % width === 0;
    const isEdge = (!isLastColumn && labels[index + 1] !== id) || (index + width < labels.length && labels[index + width] !== id);
    if (isEdge) image.data.set(OUTLINE, 4 * index);
    else if (id !== BACKGROUND) image.data.set([...colors[id], COLOR_ALPHA], 4 * index);
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** The classes of a label map as [id, share], the largest first. */
function sharesOf(labels) {
  const counts = new Uint32Array(256);
  for (const id of labels) counts[id]++;
  const present = [...counts.entries()].filter(([, count]) => count);
  return present.map(([id, count]) => [id, count / labels.length]).sort((a, b) => b[1] - a[1]);
}

function legendRow(label, color, share) {
  const row = document.createElement("tr");
  const name = Object.assign(document.createElement("th"), { scope: "row" });
  const swatch = Object.assign(document.createElement("span"), { className: "swatch" });
  if (color) swatch.style.background = `rgb(${color})`;
  name.append(swatch, label);
  row.append(name, Object.assign(document.createElement("td"), { textContent: percent(share) }));
  return row;
}

function drawResult(labels, { before, size }, model, fileName) {
  const [width, height] = size;
  drawClasses(labels, size, model.colors);
  const shares = sharesOf(labels);
  const rows = shares.map(([id, share]) => legendRow(model.labels[id], id !== BACKGROUND && model.colors[id], share));
  part("legend").replaceChildren(...rows);
  const found = shares.map(([id, share]) => `${model.labels[id]} ${percent(share)}`).join(", ");
  part("picture").setAttribute("aria-label", `${fileName}: ${found}`);
  part("scaled").hidden = before[0] === width && before[1] === height;
  part("scaled").textContent =
    `The picture has ${before[0]} x ${before[1]} pixels. It was scaled to ${width} x ${height}, because more needs too much memory in a browser.`;
  part("stage").style.setProperty("--ratio", width / height);
  part("result").hidden = false;
}

async function segment(file) {
  part("result").hidden = true;
  const picture = await drawPicture(file);
  const model = await loading;
  showStatus(`Segmenting ${file.name}`, -1);
  const began = performance.now();
  const labels = await labelMap(model.session, picture);
  const seconds = ((performance.now() - began) / 1000).toFixed(1);
  drawResult(labels, picture, model, file.name);
  showStatus(`${file.name}: ${picture.size.join(" x ")} pixels, ${seconds} s`);
  const [width, height] = picture.size;
  document.dispatchEvent(new CustomEvent("segmented", { detail: { width, height, labels } })); // for code of your own
}

function showFailure(error) {
  showStatus("");
  showProblem(error.message);
}

const loading = loadModel();
loading.catch(showFailure);
let last = loading.catch(() => {}); // one picture after the other

function take(file) {
  if (!file) return;
  last = last.then(() => {
    showProblem("");
    return segment(file).catch(showFailure);
  });
}

part("file").addEventListener("change", ({ target }) => {
  take(target.files[0]);
  target.value = ""; // so that the same file can be chosen again
});
document.addEventListener("paste", ({ clipboardData }) => take(clipboardData.files[0]));
document.addEventListener("dragover", (event) => {
  event.preventDefault(); // allows the drop
  document.body.classList.add("dragged");
});
document.addEventListener("dragleave", ({ relatedTarget }) => {
  if (!relatedTarget) document.body.classList.remove("dragged"); // it has left the window
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragged");
  take(event.dataTransfer.files[0]);
});
part("colors").addEventListener("change", ({ target }) => {
  part("classes").hidden = !target.checked;
});
