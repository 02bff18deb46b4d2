// The page: the image and what the models say of it. Texts go into the page as text alone.
const CROPPED = 255; // level of a map where the model sees nothing; the others are 0 to 254
const LEAST_PX = 512; // longest side of a drawing, at the least
const $ = (id) => document.getElementById(id);
const bytes = (base64) => Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
const sliders = ["level", "window", "opacity", "threshold"];

let about;
let image = null; // {id, name, width, height, pixels, grey: canvas}
const panels = [];

async function request(path, body) {
  const response = await fetch(path, body === undefined ? {} : { method: "POST", body });
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  throw new Error(problem.error || `the server answers ${response.status}`);
}

// Runs a task and shows its error, unless its panel or the page has turned to something newer.
async function attempt(task, isCurrent = () => true) {
  $("error").textContent = "";
  try {
    await task();
  } catch (error) {
    if (isCurrent()) {
      $("error").textContent = error instanceof TypeError ? "the server does not answer" : error.message;
      $("status").textContent = "";
    }
  }
}

let imageNumber = 0;

// `getId` gives the image's name on the server, and a note.
function choose(name, getId) {
  const number = ++imageNumber;
  const isCurrent = () => number === imageNumber;
  $("status").textContent = `Reading ${name} …`;
  return attempt(async () => {
    const [id, note] = await getId();
    const response = await request(`images/${encodeURIComponent(id)}`);
    const bitmap = await createImageBitmap(await response.blob());
    if (!isCurrent()) return;
    const grey = new OffscreenCanvas(bitmap.width, bitmap.height);
    const context = grey.getContext("2d", { willReadFrequently: true });
    context.drawImage(bitmap, 0, 0);
    const { data } = context.getImageData(0, 0, bitmap.width, bitmap.height);
    const pixels = Uint8Array.from({ length: data.length / 4 }, (_, i) => data[4 * i]);
    const [width, height] = ["X-Width", "X-Height"].map((key) => Number(response.headers.get(key)));
    image = { id, name, width, height, pixels, grey };
    $("status").textContent = `${name}, ${width} × ${height} pixels${note}`;
    for (const button of $("samples").children) {
      button.setAttribute("aria-pressed", String(button.dataset.id === id));
    }
    window_();
    for (const panel of panels) panel.renew();
  }, isCurrent);
}

function upload(file) {
  return choose(file.name, async () => {
    const { image, was_stretched } = await (await request("images", file)).json();
    const note = "; of more than 8 bits, its least value is shown black, its greatest white";
    return [image, was_stretched ? note : ""];
  });
}

// Draws the image by window and level.
function window_() {
  if (!image) return;
  const [level, width] = [Number($("level").value), Number($("window").value)];
  const shown = new ImageData(image.grey.width, image.grey.height);
  const grey = new Uint32Array(shown.data.buffer);
  const table = Uint32Array.from({ length: 256 }, (_, value) => {
    const v = Math.round(Math.min(1, Math.max(0, (value - level) / width + 0.5)) * 255);
    return (255 << 24) | (v << 16) | (v << 8) | v;
  });
  image.pixels.forEach((value, i) => (grey[i] = table[value]));
  image.grey.getContext("2d").putImageData(shown, 0, 0);
}

function coloured({ width, height, levels }, least) {
  const opacity = Number($("opacity").value);
  const drawn = new ImageData(width, height);
  levels.forEach((level, i) => {
    if (level === CROPPED || level < 254 * least) return;
    drawn.data.set(about.colours.subarray(3 * level, 3 * level + 3), 4 * i);
    drawn.data[4 * i + 3] = 255 * opacity;
  });
  const canvas = new OffscreenCanvas(width, height);
  canvas.getContext("2d").putImageData(drawn, 0, 0);
  return canvas;
}

const threshold = () => Number($("threshold").value);

class Panel {
  constructor(number) {
    this.root = $("panel").content.cloneNode(true).firstElementChild;
    this.part = (selector) => this.root.querySelector(selector);
    this.root.setAttribute("aria-label", `Panel ${number + 1}`);
    this.number = 0; // of the newest question
    this.question = null; // the newest, {path, text}
    this.asked = null; // the one that is answered by what is drawn
    this.answer = null; // what is drawn: a word, or a phrase with the `boxes` at `threshold`
    this.words = [];
    for (const name of about.models) this.part("select").append(new Option(name, name));
    this.part("select").selectedIndex = Math.min(number, about.models.length - 1);
    this.part(".model").hidden = about.models.length < 2;
    const text = this.part("textarea");
    const ask = (path) => this.ask({ path, text: text.value });
    this.part("form").addEventListener("submit", (event) => (event.preventDefault(), ask("phrase")));
    this.part(".report").addEventListener("click", () => ask("report"));
    this.part("select").addEventListener("change", () => this.renew());
    text.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing || text.value.includes("\n")) return;
      event.preventDefault();
      ask("phrase");
    });
    for (const kind of ["png", "json", "csv"]) {
      this.part(`.${kind}`).addEventListener("click", () => this[kind]());
    }
    $("panels").append(this.root);
    this.clear();
  }

  clear() {
    this.answer = null;
    this.words = [];
    for (const part of [".score", ".warning"]) this.part(part).textContent = "";
    this.part(".words").replaceChildren();
    this.draw();
  }

  renew() {
    this.number++; // what was asked before is of no use
    this.clear();
    if (this.question) this.ask(this.question);
  }

  ask(question) {
    if (!image) return attempt(() => Promise.reject(new Error("Choose an image first.")));
    this.question = question;
    const number = ++this.number;
    const isCurrent = () => number === this.number;
    this.root.setAttribute("aria-busy", "true");
    return attempt(async () => {
      const model = this.part("select").value;
      const least = question.path === "phrase" ? { threshold: threshold() } : {};
      const body = JSON.stringify({ image: image.id, model, text: question.text, ...least });
      const answer = { ...(await (await request(question.path, body)).json()), ...least };
      if (!isCurrent()) return;
      this.clear();
      this.model = model;
      this.asked = question;
      this.part(".warning").textContent = answer.warning;
      if (question.path === "phrase") this.showPhrase(answer);
      else this.showWords(answer.words);
    }, isCurrent).finally(() => isCurrent() && this.root.removeAttribute("aria-busy"));
  }

  showPhrase(answer) {
    const percent = answer.quantile === null ? "" :
      ` · above ${Math.round(100 * answer.quantile)} % of the run's validation phrases`;
    this.part(".score").textContent = `Score ${answer.score.toFixed(3)}${percent}`;
    answer.map.levels = bytes(answer.map.levels);
    this.answer = answer;
    this.draw();
  }

  showWords(words) {
    this.words = words;
    const most = Math.max(...words.map((word) => word.weight), 1e-9);
    this.part(".words").replaceChildren(...words.map((word) => {
      word.map.levels = bytes(word.map.levels);
      const button = Object.assign(document.createElement("button"), { type: "button" });
      button.textContent = word.text;
      button.style.setProperty("--weight", (0.6 * word.weight) / most);
      const show = () => this.showWord(word);
      for (const event of ["pointerenter", "focus", "click"]) button.addEventListener(event, show);
      return button;
    }));
    if (words.length) this.showWord(words.reduce((a, b) => (b.weight > a.weight ? b : a)));
  }

  showWord(word) {
    if (this.answer === word) return;
    this.answer = word;
    [...this.part(".words").children].forEach((button, i) => {
      button.setAttribute("aria-pressed", String(this.words[i] === word));
    });
    this.part(".score").textContent = `“${word.text}”, weight ${word.weight.toFixed(3)}`;
    this.draw();
  }

  boxes() {
    return this.answer?.threshold === threshold() ? this.answer.boxes : [];
  }

  // Asks for the boxes at the threshold as it is now.
  renewBoxes() {
    const [answer, least] = [this.answer, threshold()];
    if (!answer?.boxes || answer.threshold === least) return;
    const body = { image: image.id, model: this.model, text: this.asked.text, threshold: least };
    const isCurrent = () => this.answer === answer && threshold() === least;
    return attempt(async () => {
      const { boxes } = await (await request("boxes", JSON.stringify(body))).json();
      if (!isCurrent()) return;
      Object.assign(answer, { boxes, threshold: least });
      this.draw();
    }, isCurrent);
  }

  draw() {
    const canvas = this.part("canvas");
    canvas.hidden = !image;
    for (const button of this.part(".downloads").children) button.disabled = !this.answer;
    this.part(".boxes").replaceChildren(...this.boxes().map(([x0, y0, x1, y1, score]) => {
      const item = document.createElement("li");
      item.textContent = `x ${x0}–${x1}, y ${y0}–${y1}: score ${score.toFixed(3)}`;
      return item;
    }));
    if (!image) return;
    const factor = Math.max(1, LEAST_PX / Math.max(image.grey.width, image.grey.height));
    canvas.width = Math.round(factor * image.grey.width);
    canvas.height = Math.round(factor * image.grey.height);
    const context = canvas.getContext("2d");
    context.drawImage(image.grey, 0, 0, canvas.width, canvas.height);
    canvas.setAttribute("aria-label", this.answer ? `Image with the map of ${this.subject()}` : "Image");
    if (!this.answer) return;
    context.drawImage(coloured(this.answer.map, threshold()), 0, 0, canvas.width, canvas.height);
    if (!$("outlines").checked) return;
    const [x, y] = [canvas.width / image.width, canvas.height / image.height];
    for (const [x0, y0, x1, y1] of this.boxes()) {
      for (const [colour, width] of [["#000", 4], ["#5ee6ff", 2]]) {
        context.strokeStyle = colour;
        context.lineWidth = width;
        context.strokeRect(x * x0, y * y0, x * (x1 - x0), y * (y1 - y0));
      }
    }
  }

  subject() {
    return this.words.length ? `“${this.answer.text}”` : `“${this.asked.text}”`;
  }

  png() {
    this.part("canvas").toBlob((blob) => save(blob, "overlay.png"));
  }

  // The facts of what is shown, named as by plan-jax ground --json.
  facts() {
    const common = { image: image.name, width: image.width, height: image.height, model: this.model };
    const { text } = this.asked;
    if (this.words.length) {
      return { ...common, report: text, words: this.words.map(({ text, weight }) => ({ text, weight })) };
    }
    const { score, quantile, warning } = this.answer;
    const boxes = this.boxes().map(([x0, y0, x1, y1, score]) => ({ x0, y0, x1, y1, score }));
    const frame = "pixels of the image, x1 and y1 exclusive";
    return { ...common, phrase: text, score, quantile, warning, threshold: threshold(), frame, boxes };
  }

  json() {
    save(new Blob([JSON.stringify(this.facts(), null, 2) + "\n"]), "grounding.json");
  }

  // A row a word or box; a phrase without a box has a row too.
  csv() {
    const { words, boxes, ...common } = this.facts();
    const parts = words ?? (boxes.length ? boxes.map(({ score, ...box }) => ({ ...box, box_score: score })) : [{}]);
    const rows = parts.map((part) => ({ ...common, ...part }));
    const lines = [Object.keys(rows[0]), ...rows.map(Object.values)];
    save(new Blob([lines.map((line) => line.map(cell).join(",") + "\r\n").join("")]), "grounding.csv");
  }
}

// A cell of text that a spreadsheet would take for a formula gets an apostrophe before it.
function cell(value) {
  if (typeof value !== "string") return String(value ?? "");
  const text = /^'*[=+\-@\t\r]/.test(value) ? `'${value}` : value;
  return `"${text.replaceAll('"', '""')}"`;
}

function save(blob, name) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function showValues() {
  for (const id of sliders) {
    $(id).previousElementSibling.textContent = $(id).value;
  }
}

let pause;

function redraw() {
  showValues();
  window_();
  for (const panel of panels) panel.draw();
  clearTimeout(pause); // the slider may still move
  pause = setTimeout(() => panels.forEach((panel) => panel.renewBoxes()), 150);
}

function compare(both) {
  if (both && panels.length < 2) panels.push(new Panel(1));
  panels[1]?.root.toggleAttribute("hidden", !both);
  $("compare").setAttribute("aria-pressed", String(both));
}

function listen() {
  for (const id of [...sliders, "outlines"]) $(id).addEventListener("input", redraw);
  $("reset").addEventListener("click", () => {
    for (const id of sliders) $(id).value = $(id).defaultValue;
    $("outlines").checked = true;
    redraw();
  });
  $("compare").addEventListener("click", () => compare($("compare").getAttribute("aria-pressed") !== "true"));
  $("file").addEventListener("change", () => $("file").files.length && upload($("file").files[0]));
  let depth = 0;
  const dragging = (step) => document.body.classList.toggle("dragging", (depth = Math.max(0, depth + step)) > 0);
  document.addEventListener("dragenter", () => dragging(1));
  document.addEventListener("dragleave", () => dragging(-1));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    dragging(-depth);
    const { files } = event.dataTransfer;
    if (files.length > 1) attempt(() => Promise.reject(new Error("Drop one file at a time.")));
    else if (files.length) upload(files[0]);
  });
}

await attempt(async () => {
  about = await (await request("about")).json();
  about.colours = bytes(about.colours);
  listen();
  showValues();
  panels.push(new Panel(0));
  compare(about.models.length > 1);
  about.samples.forEach((id, i) => {
    const button = Object.assign(document.createElement("button"), { type: "button" });
    button.dataset.id = id;
    const thumbnail = Object.assign(new Image(), { src: `images/${id}`, alt: `Test image ${i + 1}` });
    button.append(thumbnail);
    button.addEventListener("click", () => choose(`test image ${i + 1}`, () => [id, ""]));
    $("samples").append(button);
  });
  $("samples").firstElementChild?.click();
});
