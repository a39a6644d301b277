"use strict";
// The page of `runner serve`. Pictures are sent as PPM: every runner reads that, also without Pillow.

const find = (id) => document.getElementById(id);
const ink = find("ink").getContext("2d", { willReadFrequently: true });
const pen = find("pen").getContext("2d");
const SIDE = 280; // pixels of the drawing area
const LONGEST = 640; // pixels of a photograph's longer side: far more than any network here looks at
const WIDTH = 26; // pixels of a stroke
const STEP = 8; // pixels that an arrow key moves the pen

let busy = false; // one request at a time
let waiting = null; // the picture to send after it: the newest one
let token = sessionStorage.getItem("token") || "";

function ppm(context, width, height) {
  const { data } = context.getImageData(0, 0, width, height);
  const head = new TextEncoder().encode(`P6 ${width} ${height} 255\n`);
  const body = new Uint8Array(head.length + 3 * width * height);
  body.set(head);
  for (let i = 0, out = head.length; i < data.length; i += 4) {
    body[out++] = data[i];
    body[out++] = data[i + 1];
    body[out++] = data[i + 2];
  }
  return body;
}

async function send(picture) {
  waiting = picture;
  if (busy) return;
  busy = true;
  find("answer").setAttribute("aria-busy", "true"); // nothing is read aloud before the last answer
  while (waiting) {
    const body = waiting;
    waiting = null;
    await ask(body);
  }
  busy = false;
  find("answer").removeAttribute("aria-busy");
}

async function ask(body) {
  const headers = { "Content-Type": "image/x-portable-pixmap" };
  if (token) headers.Authorization = `Bearer ${token}`;
  const begin = performance.now();
  let response, said;
  try {
    response = await fetch("predict?layers=1", { method: "POST", headers, body });
    said = await response.json();
  } catch {
    return complain("The device does not answer");
  }
  if (response.status === 401) {
    if (last) return; // a form that appears would move the paper under the stroke
    complain("Enter the token first");
    find("entrance").hidden = false;
    return find("token").focus();
  }
  find("entrance").hidden = true;
  if (!response.ok) return complain(said.error);
  show(said, performance.now() - begin);
}

function complain(message) {
  find("answer").className = "bad";
  find("answer").textContent = message;
  for (const row of find("scores").children) fill(row, null, false); // an answer to another picture
  find("latency").textContent = "";
  find("input").width = find("input").width; // wipes it
  find("input").setAttribute("aria-label", "Nothing");
  find("inside").hidden = true;
}

const percent = (part) => `${(100 * part).toFixed(1)} %`;

function show(said, elapsed) {
  const answer = find("answer");
  answer.className = "";
  answer.textContent = said.blank ? "No ink found" : `${said.label} (${percent(said.probability)})`;
  const rows = find("scores").children;
  said.probabilities.forEach(({ label, probability }, i) => {
    fill(rows[i] || addScore(label), said.blank ? null : probability, label === said.label);
  });
  find("latency").textContent =
    `${said.latency_ms.toFixed(2)} ms in the network (${said.runtime}), ${elapsed.toFixed(0)} ms until it was here`;
  paint(find("input"), said.input, 0, said.input.shape[0]);
  find("input").setAttribute("aria-label", `The input of the network, which answered ${answer.textContent}`);
  find("inside").hidden = !said.layers.length;
  find("layers").replaceChildren(...said.layers.map(figure));
}

// A row of the scores: `part` of the whole, null for none.
function fill(row, part, best) {
  row.className = best && part !== null ? "best" : "";
  row.querySelector(".fill").style.width = part === null ? "0" : percent(part).replace(" ", "");
  row.querySelector(".chance").textContent = part === null ? "" : percent(part);
}

function addScore(label) {
  const row = document.createElement("li");
  for (const name of ["name", "track", "chance"]) {
    const part = document.createElement("span");
    part.className = name;
    row.append(part);
  }
  row.firstChild.textContent = label;
  const bar = document.createElement("div");
  bar.className = "fill";
  row.children[1].append(bar);
  row.children[1].setAttribute("aria-hidden", "true");
  find("scores").append(row);
  return row;
}

// Channels `first` to `first + count` (1: grey, 3: colour) of {shape: [C, H, W], pixels: base64}.
function paint(canvas, picture, first, count) {
  const [, height, width] = picture.shape;
  const bytes = Uint8Array.from(atob(picture.pixels), (c) => c.charCodeAt(0));
  const image = new ImageData(width, height);
  const size = height * width;
  for (let i = 0; i < size; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = bytes[(first + Math.min(c, count - 1)) * size + i];
    image.data[4 * i + 3] = 255;
  }
  canvas.width = width;
  canvas.height = height;
  canvas.getContext("2d").putImageData(image, 0, 0);
}

function figure(layer, number) {
  const [shown, height, width] = layer.shape;
  const caption = document.createElement("figcaption");
  const some = shown < layer.channels ? `, the first ${shown} of them` : "";
  caption.textContent = `${number + 1}. ${layer.operators}: ${layer.channels} maps of ${height} × ${width}${some}`;
  const maps = document.createElement("div");
  maps.className = "maps";
  for (let c = 0; c < shown; c++) {
    const canvas = document.createElement("canvas");
    paint(canvas, layer, c, 1);
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${layer.operators}, map ${c + 1}`);
    maps.append(canvas);
  }
  const whole = document.createElement("figure");
  whole.append(caption, maps);
  return whole;
}

// Drawing

let last = null; // where the stroke is, [x, y], while it is being drawn
const cursor = { x: SIDE / 2, y: SIDE / 2, down: false };

function wipe() {
  ink.fillStyle = "#fff";
  ink.fillRect(0, 0, SIDE, SIDE);
}

function stroke(from, to) {
  ink.strokeStyle = "#000";
  ink.lineWidth = WIDTH;
  ink.lineCap = ink.lineJoin = "round";
  ink.beginPath();
  ink.moveTo(...from);
  ink.lineTo(...to);
  ink.stroke();
}

const sendDrawing = () => send(ppm(ink, SIDE, SIDE));

function place(event) {
  const box = event.target.getBoundingClientRect();
  return [((event.clientX - box.left) * SIDE) / box.width, ((event.clientY - box.top) * SIDE) / box.height];
}

find("pen").addEventListener("pointerdown", (event) => {
  if (event.button) return;
  event.target.setPointerCapture(event.pointerId);
  last = place(event);
  stroke(last, last);
});
find("pen").addEventListener("pointermove", (event) => {
  if (!last) return;
  for (const each of event.getCoalescedEvents?.() ?? [event]) {
    const next = place(each.target ? each : event);
    stroke(last, next);
    last = next;
  }
  sendDrawing();
});
for (const end of ["pointerup", "pointercancel"]) {
  find("pen").addEventListener(end, () => {
    if (last) sendDrawing();
    last = null;
  });
}

function showCursor() {
  pen.clearRect(0, 0, SIDE, SIDE);
  if (document.activeElement !== find("pen") || !find("pen").matches(":focus-visible")) return;
  pen.strokeStyle = "#b3124a";
  pen.lineWidth = 3;
  pen.beginPath();
  pen.arc(cursor.x, cursor.y, WIDTH / 2, 0, 7);
  pen.stroke();
  if (cursor.down) {
    pen.fillStyle = "#b3124a";
    pen.fill();
  }
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
find("pen").addEventListener("keydown", (event) => {
  const arrow = ARROWS[event.key];
  const inside = (value) => Math.min(SIDE, Math.max(0, value));
  if (arrow) {
    const from = [cursor.x, cursor.y];
    cursor.x = inside(cursor.x + STEP * arrow[0]);
    cursor.y = inside(cursor.y + STEP * arrow[1]);
    if (cursor.down) stroke(from, [cursor.x, cursor.y]);
  } else if (event.key === " ") {
    cursor.down = !cursor.down;
    if (cursor.down) stroke([cursor.x, cursor.y], [cursor.x, cursor.y]);
  } else if (event.key === "Delete" || event.key === "Backspace") {
    wipe();
  } else return;
  event.preventDefault();
  showCursor();
  if (cursor.down || !arrow) sendDrawing();
});
for (const change of ["focus", "blur"]) find("pen").addEventListener(change, showCursor);

find("clear").addEventListener("click", () => {
  wipe();
  sendDrawing();
});

// Pictures

async function take(file) {
  if (!file) return;
  let picture;
  try {
    picture = await createImageBitmap(file);
  } catch {
    return complain(`${file.name}: not a picture that this browser reads`);
  }
  const scale = Math.min(1, LONGEST / Math.max(picture.width, picture.height));
  const width = Math.max(1, Math.round(picture.width * scale));
  const height = Math.max(1, Math.round(picture.height * scale));
  const canvas = new OffscreenCanvas(width, height).getContext("2d");
  canvas.fillStyle = "#fff"; // what is transparent shows the paper
  canvas.fillRect(0, 0, width, height);
  canvas.drawImage(picture, 0, 0, width, height);
  const shown = SIDE / Math.max(width, height);
  wipe();
  ink.drawImage(picture, (SIDE - width * shown) / 2, (SIDE - height * shown) / 2, width * shown, height * shown);
  send(ppm(canvas, width, height));
}

for (const id of ["choose", "photograph"]) {
  find(id).addEventListener("change", (event) => {
    take(event.target.files[0]);
    event.target.value = "";
  });
}
for (const over of ["dragenter", "dragover"]) {
  document.addEventListener(over, (event) => {
    event.preventDefault();
    find("paper").className = "over";
  });
}
for (const done of ["dragleave", "drop"]) document.addEventListener(done, () => (find("paper").className = ""));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  take(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => take(event.clipboardData.files[0]));

find("entrance").addEventListener("submit", (event) => {
  event.preventDefault();
  token = find("token").value;
  sessionStorage.setItem("token", token);
  sendDrawing();
});

async function start() {
  wipe();
  const model = await (await fetch("healthz")).json();
  document.title = find("title").textContent = `Draw for ${model.model}`;
  find("model").textContent = `Trained on ${model.dataset}, ${model.precision}; runs with ${model.runtime}`;
  find("size").textContent = model.input_shape.join(" × ");
  model.labels.forEach(addScore);
  find("camera").hidden = !navigator.maxTouchPoints; // elsewhere it would be the other button again
}
start().catch(() => complain("The device does not answer"));
