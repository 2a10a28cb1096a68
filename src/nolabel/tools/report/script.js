"use strict";
// Shows the cosine similarity of all patches of all images to the patch under the pointer.
(() => {
  const box = document.getElementById("touch");
  const data = JSON.parse(document.getElementById("touch-data").textContent);
  const [rows, columns] = data.grid, patches = rows * columns, width = data.width;
  const bytes = Uint8Array.from(atob(data.features), (c) => c.charCodeAt(0));
  const quantised = new Int8Array(bytes.buffer), z = new Float32Array(quantised.length);
  for (let p = 0; p < quantised.length; p += width) {
    let square = 0;
    for (let k = 0; k < width; k++) square += quantised[p + k] ** 2;
    const scale = 1 / Math.max(Math.sqrt(square), 1e-12);
    for (let k = 0; k < width; k++) z[p + k] = quantised[p + k] * scale;
  }
  const canvases = [], images = [], heat = document.createElement("canvas");
  heat.width = columns;
  heat.height = rows;
  const small = heat.getContext("2d"), pixels = small.createImageData(columns, rows);
  const state = { image: 0, patch: (rows >> 1) * columns + (columns >> 1), pinned: false };

  const cosines = (image, patch) => {
    const from = (image * patches + patch) * width, out = new Float32Array(z.length / width);
    for (let p = 0; p < out.length; p++) {
      let sum = 0;
      for (let k = 0; k < width; k++) sum += z[from + k] * z[p * width + k];
      out[p] = sum;
    }
    return out;
  };

  const draw = () => {
    const c = cosines(state.image, state.patch);
    let low = 1;
    for (const v of c) low = Math.min(low, v);
    canvases.forEach((canvas, i) => {
      const pen = canvas.getContext("2d"), side = canvas.width;
      for (let p = 0; p < patches; p++) {
        const v = (c[i * patches + p] - low) / Math.max(1 - low, 1e-6);
        pixels.data.set([255, 200 * (1 - v), 0, 235 * v * v], 4 * p);
      }
      small.putImageData(pixels, 0, 0);
      pen.imageSmoothingEnabled = false;
      pen.drawImage(images[i], 0, 0, side, side);
      pen.drawImage(heat, 0, 0, side, side);
      if (i === state.image) {
        const w = side / columns, h = side / rows;
        pen.strokeStyle = "#fff";
        pen.lineWidth = 2;
        pen.strokeRect((state.patch % columns) * w, Math.floor(state.patch / columns) * h, w, h);
      }
    });
    box.dataset.patch = state.image + ":" + state.patch;
  };

  const at = (event, i) => {
    const area = canvases[i].getBoundingClientRect();
    const x = Math.floor(((event.clientX - area.left) / area.width) * columns);
    const y = Math.floor(((event.clientY - area.top) / area.height) * rows);
    state.image = i;
    state.patch = Math.min(Math.max(y, 0), rows - 1) * columns + Math.min(Math.max(x, 0), columns - 1);
  };
  const measureTime = (work) => {
    const started = performance.now();
    work();
    box.dataset.slowest = Math.max(Number(box.dataset.slowest || 0), performance.now() - started);
  };
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

  Promise.all(data.images.map((source, i) => new Promise((done) => {
    const image = new Image(), canvas = document.createElement("canvas");
    canvas.width = canvas.height = 200;
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", "image " + (i + 1) + ": arrow keys move the patch");
    canvas.addEventListener("pointermove", (event) => {
      if (!state.pinned) measureTime(() => { at(event, i); draw(); });
    });
    canvas.addEventListener("click", (event) => {
      state.pinned = !state.pinned;
      at(event, i);
      draw();
    });
    canvas.addEventListener("keydown", (event) => {
      const step = steps[event.key];
      if (!step) return;
      event.preventDefault();
      const own = state.image === i ? state.patch : (rows >> 1) * columns + (columns >> 1);
      const x = Math.min(Math.max((own % columns) + step[0], 0), columns - 1);
      const y = Math.min(Math.max(Math.floor(own / columns) + step[1], 0), rows - 1);
      measureTime(() => { state.image = i; state.patch = y * columns + x; draw(); });
    });
    canvases[i] = canvas;
    images[i] = image;
    image.onload = done;
    image.src = source;
    box.append(canvas);
  }))).then(() => {
    draw();
    box.dataset.state = "ready";
  });
})();
