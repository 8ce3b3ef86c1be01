"use strict";
// Everything shown comes from the page's own data block; nothing is fetched.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const find = (id) => document.getElementById(id);

  // ---------------------------------------------------------------- tables

  const compare = (a, b) => {
    if (a === "" || b === "") return (a === "") - (b === ""); // what was not measured comes last
    const difference = Number(a) - Number(b);
    return Number.isNaN(difference) ? a.localeCompare(b, "en", { numeric: true }) : difference;
  };

  const sortBy = (table, column) => {
    const heads = [...table.tHead.rows[0].cells];
    const descending = heads[column].getAttribute("aria-sort") === "ascending";
    const rows = [...table.tBodies[0].rows].map((row) => [row.cells[column].dataset.value, row]);
    rows.sort(([a], [b]) => (descending && a !== "" && b !== "" ? compare(b, a) : compare(a, b)));
    table.tBodies[0].append(...rows.map(([, row]) => row));
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    heads[column].setAttribute("aria-sort", descending ? "descending" : "ascending");
  };

  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => sortBy(table, column));
    });
  }

  // ---------------------------------------------------------------- the plot

  const PATHS = [ // shape in Plotly's name, and as the path of the same mark in the list of codecs
    ["circle", "M5 0A5 5 0 1 1-5 0A5 5 0 1 1 5 0Z"],
    ["square", "M-4.5-4.5H4.5V4.5H-4.5Z"],
    ["triangle-up", "M-5.5 4L0-5.5L5.5 4Z"],
    ["diamond", "M-6 0L0-6L6 0L0 6Z"],
    ["triangle-down", "M-5.5-4L0 5.5L5.5-4Z"],
    ["cross", "M-2-5.5H2V-2H5.5V2H2V5.5H-2V2H-5.5V-2H-2Z"],
    ["x", "M-5-2.2L-2.2-5L0-2.8L2.2-5L5-2.2L2.8 0L5 2.2L2.2 5L0 2.8L-2.2 5L-5 2.2L-2.8 0Z"],
  ];
  const NUM_COLOURS = 7;
  const hidden = new Set();
  const [narrow, dark] = ["(max-width: 40rem)", "(prefers-color-scheme: dark)"].map((q) => matchMedia(q));

  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const colour = (codec) => style(`--c${codec % NUM_COLOURS}`);
  // So that no two of 49 codecs look alike, the shapes go on where the colours start again.
  const shape = (codec) => PATHS[(codec + Math.floor(codec / NUM_COLOURS)) % PATHS.length];
  // Plotly reads a few tags and entities in its texts; a name is not meant to hold any.
  const literal = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const fixed = (value, digits) => (value === null ? "–" : value.toFixed(digits));
  const thousands = (value) => value.toLocaleString("en");

  const pointsOf = (codec) => {
    const plotted = find("plotted").value;
    const rows = plotted === "" ? data.means : data.rows.filter((row) => row.image === Number(plotted));
    return rows.filter((row) => row.codec === codec).sort((a, b) => a.bpp - b.bpp);
  };

  const trace = (codec) => {
    const metric = find("metric").value;
    const points = pointsOf(codec);
    return {
      type: "scatter", mode: "lines+markers", visible: !hidden.has(codec),
      name: literal(data.codecs[codec]),
      x: points.map((point) => point.bpp),
      y: points.map((point) => point[metric]),
      line: { color: colour(codec), width: 2 },
      marker: { symbol: shape(codec)[0], size: 10, line: { color: style("--paper"), width: 1 } },
      customdata: points.map((point) => [
        literal(point.setting), thousands(point.num_bytes), fixed(point.psnr, 2),
        fixed(point.ssim, 4), fixed(point.ms_ssim, 4),
      ]),
      hovertemplate: "<b>%{fullData.name}</b><br>%{customdata[0]}<br>%{customdata[1]} bytes, %{x:.4f} bpp<br>"
        + "PSNR %{customdata[2]} dB<br>SSIM %{customdata[3]}, MS-SSIM %{customdata[4]}<extra></extra>",
    };
  };

  const BUTTONS = [["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]];

  /** What Plotly's own logarithmic axis lacks: every tick with its whole number. */
  const rateTicks = () => {
    const steps = narrow.matches ? [1, 3] : [1, 1.5, 2, 3, 4, 5, 7];
    const ticks = [-4, -3, -2, -1, 0, 1, 2].flatMap((k) => steps.map((step) => Number(`${step}e${k}`)));
    return find("rate-axis").value === "log"
      ? { type: "log", tickmode: "array", tickvals: ticks, ticktext: ticks.map(String) }
      : { type: "linear", tickmode: "auto" };
  };

  const drawPlot = () => {
    const axis = { gridcolor: style("--line"), linecolor: style("--line"), zeroline: false, automargin: true };
    const metric = find("metric").selectedOptions[0];
    const touch = matchMedia("(pointer: coarse)").matches; // a finger on the plot scrolls the page
    Plotly.react(find("plot"), data.codecs.map((_, codec) => trace(codec)), {
      autosize: true, showlegend: false, hovermode: "closest", dragmode: touch ? false : "zoom",
      margin: { l: 10, r: 10, t: 30, b: 10 },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "system-ui, sans-serif", size: 13, color: style("--ink") },
      hoverlabel: { align: "left", bgcolor: style("--raised"), bordercolor: style("--line"), font: { color: style("--ink") } },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: style("--dim"), activecolor: style("--ink") },
      xaxis: { ...axis, title: { text: "bpp" }, ...rateTicks() },
      yaxis: { ...axis, title: { text: metric.textContent } },
    }, { responsive: true, displaylogo: false, modeBarButtons: BUTTONS });
  };

  for (const box of document.querySelectorAll("[data-codec]")) {
    const codec = Number(box.dataset.codec);
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("d", shape(codec)[1]);
    path.style.fill = `var(--c${codec % NUM_COLOURS})`;
    box.nextElementSibling.append(path);
    box.addEventListener("change", () => {
      if (box.checked) hidden.delete(codec); else hidden.add(codec);
      drawPlot();
    });
    if (!box.checked) hidden.add(codec); // a browser keeps the boxes of a page that is loaded again
  }
  for (const id of ["metric", "plotted", "rate-axis"]) find(id).addEventListener("change", drawPlot);
  for (const query of [narrow, dark]) query.addEventListener("change", drawPlot);
  drawPlot();

  // ---------------------------------------------------------------- the pictures

  if (!data.viewer.length) return;
  const ORIGINAL = "original";
  const SIDES = ["left", "right"];
  const [frame, scroll, stage, divider] = ["frame", "scroll", "stage", "divider"].map(find);
  let image = data.viewer[0];
  let split = 0.5; // of the frame's width
  let latest = 0; // the number of the newest drawing: an older one that ends late shows nothing
  let loaded = new Map(); // of this image: number of a picture -> its element, as a promise

  const fill = (select, options) => {
    select.replaceChildren(...options.map(([value, text]) => new Option(text, value)));
  };

  /** The file that a side shows: an item of image.files, or null for the original. */
  const fileOf = (side) => {
    const chosen = find(`${side}-setting`).value;
    return chosen === "" ? null : image.files[Number(chosen)];
  };

  const codecsHere = () => data.codecs.map((_, codec) => codec)
    .filter((codec) => image.files.some((file) => file.codec === codec));

  const fillSettings = (side) => {
    const codec = find(`${side}-codec`).value;
    const files = image.files.map((file, index) => [file, index]).filter(([file]) => String(file.codec) === codec);
    files.sort(([a], [b]) => a.num_bytes - b.num_bytes);
    fill(find(`${side}-setting`), codec === ORIGINAL ? [["", "–"]] : files.map(([file, index]) => [index, file.setting]));
  };

  const fillCodecs = (side) => {
    const options = codecsHere().map((codec) => [codec, data.codecs[codec]]);
    fill(find(`${side}-codec`), image.original === null ? options : [[ORIGINAL, "original"], ...options]);
  };

  const choose = (side, index) => { // index of a file, null for the original
    find(`${side}-codec`).value = index === null ? ORIGINAL : image.files[index].codec;
    fillSettings(side);
    find(`${side}-setting`).value = index === null ? "" : index;
  };

  /** The right side's file becomes the one of its codec that is nearest in bytes to the left's. */
  const match = () => {
    const linked = find("link").checked;
    const [left, right] = SIDES.map(fileOf);
    if (linked && left !== null && right !== null) find("right-setting").value = left.nearest[right.codec];
    for (const side of SIDES) {
      find(`${side}-setting`).disabled = fileOf(side) === null
        || (side === "right" && linked && left !== null);
    }
  };

  const load = (number) => {
    if (!loaded.has(number)) {
      const picture = new Image();
      picture.src = find(`picture-${number}`).textContent;
      loaded.set(number, picture.decode().then(() => picture));
    }
    return loaded.get(number);
  };

  const pixels = (picture) => {
    const canvas = new OffscreenCanvas(image.width, image.height);
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(picture, 0, 0);
    return context.getImageData(0, 0, image.width, image.height);
  };

  const errorMap = (picture, original, gain) => {
    const [a, b] = [pixels(picture), pixels(original)];
    for (let i = 0; i < a.data.length; i += 1) {
      if (i % 4 !== 3) a.data[i] = gain * Math.abs(a.data[i] - b.data[i]); // clamped to 255
    }
    return a;
  };

  const difference = (file, other) => {
    const percent = 100 * (file.num_bytes / other.num_bytes - 1);
    const sign = percent < 0 ? "−" : "+";
    const same = image.files.filter((item) => item.codec === file.codec);
    const smallest = same.every((item) => item.num_bytes >= file.num_bytes);
    return `${sign}${Math.abs(percent).toFixed(1)} %${smallest && percent > 0 ? ", its smallest file here" : ""}`;
  };

  const caption = (side, file, other) => {
    const lines = file === null
      ? [`${image.width} × ${image.height} pixels`]
      : [
        file.setting,
        `${thousands(file.num_bytes)} bytes${other ? ` (${difference(file, other)})` : ""}`,
        `${file.bpp.toFixed(4)} bpp, ${file.psnr === null ? "exact" : `${file.psnr.toFixed(2)} dB`}`
          + (file.ms_ssim === null ? "" : `, MS-SSIM ${file.ms_ssim.toFixed(4)}`),
      ];
    const name = document.createElement("strong");
    name.textContent = file === null ? "original" : data.codecs[file.codec];
    const spans = lines.map((line) => Object.assign(document.createElement("span"), { textContent: line }));
    find(`${side}-caption`).replaceChildren(name, ...spans);
    find(side).setAttribute("aria-label", `${image.name}: ${name.textContent}${file === null ? "" : `, ${file.setting}`}`);
  };

  const draw = async () => {
    latest += 1;
    const number = latest;
    const gain = Number(find("mode").value);
    const files = SIDES.map(fileOf);
    const numbers = files.map((file) => (file === null ? image.original : file.picture));
    const original = gain ? await load(image.original) : null;
    const pictures = await Promise.all(numbers.map(load));
    if (number !== latest) return;
    SIDES.forEach((side, i) => {
      const canvas = find(side);
      [canvas.width, canvas.height] = [image.width, image.height];
      const context = canvas.getContext("2d");
      if (gain) context.putImageData(errorMap(pictures[i], original, gain), 0, 0);
      else context.drawImage(pictures[i], 0, 0);
    });
    const [left, right] = files;
    caption("left", left, null);
    caption("right", right, left);
    frame.dataset.drawn = `${numbers.join(" ")} ${gain}`; // what is on the canvases now
    layOut();
  };

  const layOut = () => {
    const room = frame.parentElement.clientWidth;
    const zoom = find("zoom").value;
    const fit = Math.min(1, room / image.width, (0.8 * innerHeight) / image.height);
    const scale = zoom === "fit" ? fit : Number(zoom);
    stage.classList.toggle("sharp", scale >= 1);
    stage.style.width = `${Math.max(1, Math.floor(scale * image.width))}px`;
    stage.style.height = `${Math.max(1, Math.floor(scale * image.height))}px`;
    frame.style.width = `${Math.min(room, Math.max(40, stage.offsetWidth + scroll.offsetWidth - scroll.clientWidth))}px`;
    for (const beside of document.querySelectorAll(".panes, .captions")) {
      beside.style.maxWidth = `max(50rem, ${frame.offsetWidth}px)`;
    }
    moveTo(split);
  };

  const moveTo = (where) => {
    split = Math.min(1, Math.max(0, where));
    const at = split * scroll.clientWidth;
    divider.style.left = `${at}px`;
    find("left").style.clipPath = `inset(0 ${Math.max(0, stage.offsetWidth - at - scroll.scrollLeft)}px 0 0)`;
    divider.setAttribute("aria-valuenow", Math.round(100 * split));
    divider.setAttribute("aria-valuetext", `${Math.round(100 * split)} % left picture`);
  };

  const drag = (event) => {
    if (event.button !== 0 || (event.currentTarget === stage && event.pointerType === "touch")) return;
    event.preventDefault();
    divider.focus({ preventScroll: true, focusVisible: false });
    const target = event.currentTarget;
    const move = ({ clientX }) => moveTo((clientX - scroll.getBoundingClientRect().left) / scroll.clientWidth);
    const end = () => {
      target.removeEventListener("pointermove", move);
      target.removeEventListener("pointerup", end);
      target.removeEventListener("pointercancel", end);
    };
    target.setPointerCapture(event.pointerId);
    target.addEventListener("pointermove", move);
    target.addEventListener("pointerup", end);
    target.addEventListener("pointercancel", end);
    move(event);
  };

  const KEYS = {
    ArrowLeft: (s) => s - 0.01, ArrowDown: (s) => s - 0.01, ArrowRight: (s) => s + 0.01, ArrowUp: (s) => s + 0.01,
    PageDown: (s) => s - 0.1, PageUp: (s) => s + 0.1, Home: () => 0, End: () => 1,
  };

  /** Start a side on a file (undefined: as the data says), or on what this image has of its like. */
  const start = (side, before, first) => {
    const same = (file) => before && file.codec === before.codec && file.setting === before.setting;
    const index = image.files.findIndex(same);
    if (before === null && image.original !== null) choose(side, null);
    else choose(side, index >= 0 ? index : first);
  };

  const showImage = (before) => {
    image = data.viewer[Number(find("image").value)];
    loaded = new Map();
    SIDES.forEach((side, i) => {
      fillCodecs(side);
      start(side, before[i], image.first[i]);
    });
    match();
    draw();
  };

  fill(find("image"), data.viewer.map((item, index) => [index, item.name]));
  find("zoom").value = "fit";
  find("mode").value = "0";
  find("image").addEventListener("change", () => showImage(SIDES.map(fileOf)));
  for (const side of SIDES) {
    find(`${side}-codec`).addEventListener("change", () => { fillSettings(side); match(); draw(); });
    find(`${side}-setting`).addEventListener("change", () => { match(); draw(); });
  }
  scroll.addEventListener("scroll", () => moveTo(split));
  find("link").addEventListener("change", () => { match(); draw(); });
  find("mode").addEventListener("change", draw);
  find("zoom").addEventListener("change", layOut);
  stage.addEventListener("pointerdown", drag);
  divider.addEventListener("pointerdown", drag);
  divider.addEventListener("keydown", (event) => {
    if (!(event.key in KEYS) || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    moveTo(KEYS[event.key](split));
  });
  new ResizeObserver(layOut).observe(frame.parentElement);
  showImage([undefined, undefined]);
})();
