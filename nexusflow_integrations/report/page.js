"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const bytes = (text) => Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
  const floats = (text) => new Float32Array(bytes(text).buffer);
  const X = floats(data.x), Y = floats(data.y), N = data.ids.length;
  const near = new Int32Array(bytes(data.near.places).buffer), nearScores = floats(data.near.scores);
  const groupings = data.groupings.map((item) => ({ ...item, of: bytes(item.of) }));
  // As many as measure.COLOURS, and the grey of the others.
  const COLOURS = ["#4c78d8", "#e4803c", "#2fa67a", "#d24f74", "#8a63c9", "#b8912a", "#2f9fb8", "#c45fb0", "#7a9a3a", "#a0674b", "#5f7f95", "#9a9da6"];
  const whole = (number) => number.toLocaleString("en");
  const many = (number, what) => `${whole(number)} ${what}${number === 1 ? "" : "s"}`;
  const score = (number) => number.toFixed(3);

  // Every text goes through a text node, so that no HTML in it is interpreted.
  function h(tag, properties, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(properties || {})) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (name === "class") node.className = value;
      else if (value !== undefined) node.setAttribute(name, value);
    }
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  }
  const show = (node, ...children) => node.replaceChildren(...children.filter(Boolean));
  const label = (at) => data.sources[at] || data.ids[at];
  const link = (at) => data.links[at] || "";
  function named(at) {
    const to = link(at);
    return to ? h("a", { class: "source", href: to, target: "_blank", rel: "noopener noreferrer" }, label(at)) : h("span", { class: "source" }, label(at));
  }
  // Returns a function that finds words in a text, or null if there are no words. A whole word has no
  // letter beside it. CJK scripts have no spaces, so there a part of a longer run counts.
  const CJK = /[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]/, LETTER = /\p{L}/u;
  const apart = (char) => !LETTER.test(char) || CJK.test(char);
  function finder(words, whole) {
    if (!words.length) return null;
    const pattern = new RegExp(words.map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).sort((a, b) => b.length - a.length).join("|"), "giu");
    return (text) => [...text.matchAll(pattern)].map((found) => [found.index, found.index + found[0].length])
      .filter(([from, to]) => !whole || CJK.test(text.slice(from, to)) || (apart(text.charAt(from - 1)) && apart(text.charAt(to))));
  }
  function brief(text, find, length) {
    let from = 0;
    const found = find && find(text)[0];
    if (found && found[0] > length / 2) from = Math.max(0, text.lastIndexOf(" ", found[0] - length / 3));
    const cut = text.slice(from, from + length);
    return (from ? "… " : "") + cut + (from + length < text.length ? " …" : "");
  }
  function marked(text, find) {
    const node = document.createDocumentFragment();
    let last = 0;
    for (const [from, to] of find ? find(text) : []) {
      node.append(text.slice(last, from), h("mark", {}, text.slice(from, to)));
      last = to;
    }
    node.append(text.slice(last));
    return node;
  }

  // -- the map --------------------------------------------------------------------------------
  const canvas = $("map"), pen = canvas.getContext("2d"), tip = $("tip");
  let width = 0, height = 0, scale = 1, left = 0, top = 0, hovered = -1, selected = -1;
  let colouring = groupings[0], only = -1, terms = [], typed = null, match = null, matches = N, waiting = false;
  const PAD = 18;
  const screenX = (x) => PAD + (x - left) * scale * (width - 2 * PAD);
  const screenY = (y) => PAD + (1 - y - top) * scale * (height - 2 * PAD);
  const dataX = (x) => (x - PAD) / (scale * (width - 2 * PAD)) + left;
  const dataY = (y) => 1 - ((y - PAD) / (scale * (height - 2 * PAD)) + top);
  const visible = (at) => (match === null || match[at]) && (only < 0 || colouring.of[at] === only);

  // A grid over the points, so that a hover checks only a few cells.
  const CELLS = Math.max(1, Math.min(128, Math.ceil(Math.sqrt(N / 2))));
  const cell = (value) => Math.max(0, Math.min(CELLS - 1, Math.floor(value * CELLS)));
  const starts = new Int32Array(CELLS * CELLS + 1), order = new Int32Array(N);
  for (let at = 0; at < N; at++) starts[cell(X[at]) * CELLS + cell(Y[at]) + 1]++;
  for (let at = 0; at < CELLS * CELLS; at++) starts[at + 1] += starts[at];
  const next = starts.slice();
  for (let at = 0; at < N; at++) order[next[cell(X[at]) * CELLS + cell(Y[at])]++] = at;

  function pick(px, py, reach) {
    const rx = reach / (scale * (width - 2 * PAD)), ry = reach / (scale * (height - 2 * PAD));
    const x = dataX(px), y = dataY(py);
    let best = -1, least = reach * reach;
    for (let i = cell(x - rx); i <= cell(x + rx); i++) {
      for (let j = cell(y - ry); j <= cell(y + ry); j++) {
        for (let k = starts[i * CELLS + j]; k < starts[i * CELLS + j + 1]; k++) {
          const at = order[k];
          if (!visible(at)) continue;
          const dx = screenX(X[at]) - px, dy = screenY(Y[at]) - py, far = dx * dx + dy * dy;
          if (far <= least) { least = far; best = at; }
        }
      }
    }
    return best;
  }

  function draw() {
    waiting = false;
    const ratio = window.devicePixelRatio || 1, style = getComputedStyle(document.documentElement);
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    const size = (N > 4000 ? 2 : N > 1000 ? 2.8 : 4) * Math.min(2.2, Math.sqrt(scale)) * (width < 500 ? 0.75 : 1);
    const faded = [], groups = COLOURS.map(() => []);
    for (let at = 0; at < N; at++) {
      const x = screenX(X[at]), y = screenY(Y[at]);
      if (x < -9 || y < -9 || x > width + 9 || y > height + 9) continue;
      (visible(at) ? groups[colouring.colours[colouring.of[at]]] : faded).push(x, y);
    }
    const dots = (list, colour, alpha, radius) => {
      pen.fillStyle = colour; pen.globalAlpha = alpha; pen.beginPath();
      for (let k = 0; k < list.length; k += 2) {
        pen.moveTo(list[k] + radius, list[k + 1]);
        pen.arc(list[k], list[k + 1], radius, 0, 6.2832);
      }
      pen.fill();
    };
    dots(faded, style.getPropertyValue("--dim"), 0.16, size * 0.8);
    for (let place = groups.length - 1; place >= 0; place--) dots(groups[place], COLOURS[place], place === COLOURS.length - 1 ? 0.45 : 0.85, size);
    pen.globalAlpha = 1;
    names(style, size);
    const ring = (at, colour, radius) => {
      if (at < 0) return;
      pen.strokeStyle = colour; pen.lineWidth = 2; pen.beginPath();
      pen.arc(screenX(X[at]), screenY(Y[at]), radius, 0, 6.2832); pen.stroke();
    };
    if (selected >= 0) {
      pen.globalAlpha = 0.5;
      pen.strokeStyle = style.getPropertyValue("--accent"); pen.lineWidth = 1; pen.beginPath();
      for (let k = 0; k < data.near.many; k++) {
        const other = near[selected * data.near.many + k];
        pen.moveTo(screenX(X[selected]), screenY(Y[selected])); pen.lineTo(screenX(X[other]), screenY(Y[other]));
      }
      pen.stroke(); pen.globalAlpha = 1;
    }
    ring(selected, style.getPropertyValue("--accent"), size + 4);
    ring(hovered, style.getPropertyValue("--ink"), size + 3);
  }
  // Where the name of each group is: at its point that is nearest to the medians of its points.
  for (const item of groupings) {
    const of = item.names.map(() => []);
    for (let at = 0; at < N; at++) of[item.of[at]].push(at);
    const middle = (all, axis) => all.map((at) => axis[at]).sort((a, b) => a - b)[all.length >> 1];
    item.middles = of.map((all) => {
      const x = middle(all, X), y = middle(all, Y), away = (at) => Math.hypot(X[at] - x, Y[at] - y);
      const best = all.reduce((one, other) => (away(other) < away(one) ? other : one), all[0]);
      return [X[best], Y[best]];
    });
  }
  function names(style, size) {
    if (selected >= 0 || terms.length || groupings.length === 0 || N < 12) return;
    const taken = [], tall = width < 500 ? 10 : 12;
    pen.font = `600 ${tall}px system-ui, sans-serif`; pen.textAlign = "center"; pen.textBaseline = "middle";
    pen.lineWidth = 3; pen.lineJoin = "round";
    colouring.names.forEach((name, place) => {
      if (colouring.colours[place] === COLOURS.length - 1 || (only >= 0 && only !== place)) return;
      const text = name.length > 26 ? `${name.slice(0, 25)}…` : name, half = pen.measureText(text).width / 2 + 3;
      const x = screenX(colouring.middles[place][0]), middle = screenY(colouring.middles[place][1]);
      const away = size + tall * 0.7, y = middle - away > tall ? middle - away : middle + away;  // beside the point
      const at = Math.max(half, Math.min(width - half, x));
      if (Math.abs(at - x) > half || y < tall || y > height - tall) return;
      const box = [at - half, y - tall, at + half, y + tall];
      if (taken.some((other) => box[0] < other[2] && other[0] < box[2] && box[1] < other[3] && other[1] < box[3])) return;
      taken.push(box);
      pen.strokeStyle = style.getPropertyValue("--page"); pen.strokeText(text, at, y);
      pen.fillStyle = style.getPropertyValue("--ink"); pen.fillText(text, at, y);
    });
  }
  const redraw = () => { if (!waiting) { waiting = true; requestAnimationFrame(draw); } };
  function resize() {
    const box = canvas.getBoundingClientRect(), ratio = window.devicePixelRatio || 1;
    width = box.width; height = box.height;
    canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio);
    redraw();
  }
  new ResizeObserver(resize).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

  function zoom(factor, px, py) {
    const x = px === undefined ? width / 2 : px, y = py === undefined ? height / 2 : py;
    const to = Math.max(1, Math.min(60, scale * factor)), dx = dataX(x), dy = 1 - dataY(y);
    scale = to;
    left = dx - (x - PAD) / (scale * (width - 2 * PAD));
    top = dy - (y - PAD) / (scale * (height - 2 * PAD));
    bound();
  }
  function bound() {
    const room = 1 - 1 / scale;
    left = Math.max(-0.1 * (scale > 1), Math.min(room + 0.1 * (scale > 1), left));
    top = Math.max(-0.1 * (scale > 1), Math.min(room + 0.1 * (scale > 1), top));
    if (scale === 1) left = top = 0;
    redraw();
  }
  $("in").onclick = () => zoom(1.6);
  $("out").onclick = () => zoom(1 / 1.6);
  $("whole").onclick = () => { scale = 1; bound(); };
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return;  // let the page scroll
    event.preventDefault();
    zoom(Math.exp(-event.deltaY / 200), event.offsetX, event.offsetY);
  }, { passive: false });
  canvas.addEventListener("dblclick", (event) => zoom(2, event.offsetX, event.offsetY));

  let drag = null;
  canvas.addEventListener("pointerdown", (event) => {
    drag = { x: event.offsetX, y: event.offsetY, left, top, moved: false };
  });
  canvas.addEventListener("pointermove", (event) => {
    if (drag && event.buttons) {
      const dx = event.offsetX - drag.x, dy = event.offsetY - drag.y;
      if (drag.moved || Math.hypot(dx, dy) > 5) {
        drag.moved = true;
        left = drag.left - dx / (scale * (width - 2 * PAD));
        top = drag.top - dy / (scale * (height - 2 * PAD));
        hide(); bound();
        return;
      }
    }
    hover(pick(event.offsetX, event.offsetY, 14));
  });
  canvas.addEventListener("pointerup", (event) => {
    if (drag && !drag.moved) {
      const at = pick(event.offsetX, event.offsetY, event.pointerType === "touch" ? 24 : 14);
      if (at >= 0) select(at);
    }
    drag = null;
  });
  canvas.addEventListener("pointerleave", () => { drag = null; hide(); });
  const hide = () => { if (hovered >= 0) { hovered = -1; tip.hidden = true; redraw(); } };
  function hover(at) {
    if (at === hovered) return;
    if (at < 0) { hide(); return; }
    hovered = at;
    show(tip, h("div", { class: "source" }, label(at)), h("div", { class: "clip" }, marked(brief(data.texts[at], typed, 180), typed)));
    tip.hidden = false;
    const x = screenX(X[at]), y = screenY(Y[at]);
    tip.style.left = `${Math.max(4, Math.min(width - tip.offsetWidth - 4, x + 12))}px`;
    tip.style.top = `${y + 14 + tip.offsetHeight > height ? Math.max(4, y - tip.offsetHeight - 12) : y + 14}px`;
    redraw();
  }
  canvas.setAttribute("aria-label", `${many(N, "text")}. Points that are close together have similar meanings. Use the search field to reach texts with the keyboard.`);

  function row(at, find, number, extra) {
    return h("li", {}, h("div", { class: `row small ${extra || ""}` },
      h("div", { class: "grow" }, named(at),
        h("button", { class: "text clip dim", onclick: () => reveal(at) }, marked(brief(data.texts[at], find, 160) || data.ids[at], find))),
      number === null ? null : h("span", { class: "number" }, number)));
  }
  function select(at) {
    selected = at;
    const others = [];
    for (let k = 0; k < data.near.many; k++) others.push(row(near[at * data.near.many + k], typed, score(nearScores[at * data.near.many + k])));
    const back = terms.length || only >= 0 ? h("button", { class: "back small", onclick: () => { list(); redraw(); } }, "← back to the list") : null;
    show($("side"), back, h("div", { class: "head", id: "chosen" }, named(at)),
      h("div", { class: "dim small" }, groupings.map((item) => `${item.label}: ${item.names[item.of[at]]}`).join(" · ")),
      h("div", { class: "full small" }, marked(data.texts[at], typed)),
      others.length ? h("h3", {}, "Nearest neighbours") : null, h("ol", { class: "rows" }, ...others));
    $("side").scrollTop = 0;
    redraw();
  }
  function reveal(at) {
    select(at);
    const x = screenX(X[at]), y = screenY(Y[at]);
    if (x < 0 || y < 0 || x > width || y > height) { scale = 1; bound(); }
    const box = canvas.getBoundingClientRect();
    if (box.bottom < 80 || box.top > innerHeight - 80) canvas.parentNode.scrollIntoView({ behavior: "smooth", block: "nearest" });
  }

  // -- search and colours ---------------------------------------------------------------------
  const low = data.texts.map((text, at) => `${data.sources[at]}\n${data.ids[at]}\n${text}`.toLowerCase());
  function search() {
    terms = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    typed = finder(terms, false);
    match = null; matches = N;
    if (terms.length) {
      match = new Uint8Array(N); matches = 0;
      for (let at = 0; at < N; at++) if (terms.every((term) => low[at].includes(term))) { match[at] = 1; matches++; }
    }
    $("count").textContent = terms.length ? `${whole(matches)} of ${whole(N)}` : "";
    list(); hide(); redraw();
  }
  function list() {
    selected = -1;
    if (!terms.length && only < 0) {
      show($("side"), h("p", { class: "dim" }, "Hover over a point to read its text; click or tap it to see its neighbours. Points that are close together have similar meanings."));
      return;
    }
    const shown = [];
    for (let at = 0; at < N && shown.length < 50; at++) if (visible(at)) shown.push(row(at, typed, null));
    show($("side"), shown.length ? h("ol", { class: "rows" }, ...shown) : h("p", { class: "dim" }, "No text contains all of these words."));
  }
  $("search").addEventListener("input", search);
  function colour(item) {
    colouring = item; only = -1;
    [...$("colours").children].forEach((button) => button.setAttribute("aria-pressed", String(button.textContent === item.label)));
    const counts = new Array(item.names.length).fill(0);
    item.of.forEach((place) => counts[place]++);
    show($("legend"), ...item.names.map((name, place) => {
      const dot = h("span", { class: "dot" });
      dot.style.background = COLOURS[item.colours[place]];
      return h("button", { "aria-pressed": "false", onclick: (event) => {
        only = only === place ? -1 : place;
        [...$("legend").children].forEach((other) => other.setAttribute("aria-pressed", String(other === event.currentTarget && only === place)));
        list(); hide(); redraw();
      } }, dot, h("span", { class: "name" }, name), h("span", { class: "number" }, whole(counts[place])));
    }));
    list(); redraw();
  }
  show($("colours"), ...groupings.map((item) => h("button", { onclick: () => colour(item) }, item.label)));
  $("colours").hidden = groupings.length < 2;

  // -- questions ------------------------------------------------------------------------------
  const GOOD = 3;
  const judged = data.questions.filter((item) => item.expected.length);
  const failed = judged.filter((item) => item.rank > GOOD).sort((a, b) => b.rank - a.rank);
  const verdict = (question) => question.expected.length
    ? h("p", { class: `${question.rank <= GOOD ? "good" : "bad"} small` }, `First correct result${data.total > N ? " in the sample" : ""}: #${whole(question.rank)} (cosine ${score(question.score)}).`)
    : null;
  function hits(question, most) {
    const find = finder(question.words, true), right = new Set(question.right), first = question.hits.slice(0, most);
    const list = first.map(([at, value]) => row(at, find, score(value), right.has(at) ? "right" : ""));
    if (question.first !== null && !first.some(([at]) => right.has(at))) list.push(row(question.first, find, `${whole(question.rank)}. ${score(question.score)}`, "right"));
    return list;
  }
  function answer(question, button) {
    [...$("questions").querySelectorAll("button")].forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
    show($("answer"), h("div", { class: "head" }, marked(question.text, finder(question.words, true))), verdict(question), h("ol", { class: "rows scroll" }, ...hits(question, question.hits.length)));
  }
  function ask(list) {
    const buttons = list.map((item) => {
      const place = item.expected.length ? `#${whole(item.rank)}` : "";
      const tone = !place ? "" : item.rank <= GOOD ? "good" : "bad";
      const button = h("button", { class: "row small", onclick: () => answer(item, button) }, h("span", { class: "grow" }, item.text), h("span", { class: `number ${tone}` }, place));
      return button;
    });
    show($("questions"), ...buttons.map((button) => h("li", {}, button)));
    if (list.length) answer(list[0], buttons[0]);
  }
  if (data.questions.length) {
    $("inspector").hidden = false;
    if (judged.length) {
      const rate = (most) => (judged.filter((item) => item.rank <= most).length / judged.length).toFixed(2);
      $("rates").textContent = `hit@1 ${rate(1)} · hit@3 ${rate(3)} · hit@5 ${rate(5)} over ${many(judged.length, "question")}`
        + (data.total > N ? `, among the ${whole(N)} texts of the sample. Among all ${whole(data.total)} texts, they may be lower.` : "");
    }
    // The worst first; questions without expected ids last, in their order.
    const worst = [...data.questions].sort((a, b) => (b.rank || 0) - (a.rank || 0));
    const choices = [[`${whole(failed.length)} not in the first ${GOOD}`, worst.filter((item) => item.rank > GOOD)], [`all ${whole(data.questions.length)}`, worst]];
    const buttons = choices.map(([name, list]) => h("button", { onclick: (event) => pressed(event.currentTarget, list) }, name));
    const pressed = (button, list) => {
      buttons.forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
      ask(list);
    };
    show($("which"), ...buttons);
    $("which").hidden = failed.length === 0;
    const start = failed.length ? 0 : 1;
    pressed(buttons[start], choices[start][1]);
    const printed = failed.length ? failed : judged;
    show($("printed"), ...printed.slice(0, 100).map((item) => h("section", {}, h("div", { class: "head" }, item.text), verdict(item), h("ol", { class: "rows" }, ...hits(item, GOOD)))));
  }

  // -- the cards ------------------------------------------------------------------------------
  function bars() {
    const { edges, random, nearest } = data.histogram;
    if (!edges.length) return h("p", { class: "dim" }, "Too few texts.");
    const s = (tag, properties, text) => {
      const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
      for (const [name, value] of Object.entries(properties)) node.setAttribute(name, value);
      if (text) node.append(text);
      return node;
    };
    const svg = s("svg", { viewBox: "0 0 520 190", role: "img", "aria-label": "Cosines of random pairs and of nearest neighbours" });
    const most = Math.max(...random, ...nearest), step = 520 / random.length;
    [[random, "a"], [nearest, "b"]].forEach(([shares, name]) => shares.forEach((share, at) => {
      const tall = share / most * 160;
      if (tall > 0) svg.append(s("rect", { class: name, x: at * step + 1, y: 168 - tall, width: step - 2, height: tall, rx: 1 }));
    }));
    const first = edges[0], span = edges[edges.length - 1] - first;
    for (let tick = Math.ceil(first * 5) / 5; tick <= first + span + 1e-6; tick += 0.2) {
      const x = (tick - first) / span * 520;
      svg.append(s("text", { x: Math.max(10, Math.min(508, x)), y: 184, "text-anchor": "middle" }, (Math.round(tick * 10) / 10 + 0).toFixed(1)));
    }
    return h("div", {}, svg, h("div", { class: "keys" },
      h("span", {}, h("i", { class: "dot key-a" }), "random pairs"),
      h("span", {}, h("i", { class: "dot key-b" }), "nearest neighbours")));
  }
  show($("histogram"), bars());
  show($("near-duplicates"), h("p", { class: "dim small" }, data.near_duplicates.length
      ? "Pairs with a cosine of 0.95 or more, nearest first." : "No two texts have a cosine of 0.95 or more."),
    data.near_duplicates.length && h("ol", { class: "rows scroll" }, ...data.near_duplicates.map(([one, two, value]) => h("li", {}, h("div", { class: "row small" },
      h("div", { class: "grow" }, named(one), h("span", { class: "dim" }, " and "), named(two),
        h("button", { class: "text clip dim", onclick: () => reveal(one) }, brief(data.texts[one], null, 120) || data.ids[one])), h("span", { class: "number" }, score(value)))))));
  show($("outliers"), h("p", { class: "dim small" }, "Farthest from their nearest neighbours, by mean cosine."),
    h("ol", { class: "rows scroll" }, ...data.outliers.map(([at, value]) => row(at, null, score(value)))));
  const money = (amount) => amount === 0 ? `0 ${data.cost.currency}` : `${amount >= 0.01 ? amount.toFixed(2) : amount.toPrecision(2)} ${data.cost.currency}`;
  const give = data.cost.error ? ` ±${Math.round(data.cost.error * 100)}%` : "";
  const facts = [["Texts shown", `${whole(N)}${data.total > N ? ` of ${whole(data.total)}, a sample` : ""}`],
    ["Tokens", `about ${whole(data.cost.tokens)}${give}`], ["Cost of embedding", data.cost.free ? "none: a local model" : `${money(data.cost.price)} at the list price of ${data.cost.million} ${data.cost.currency} per million`]];
  if (data.questions.length) facts.push(["Cost of this report", `${whole(data.cost.asked_tokens)} tokens for ${many(data.questions.length, "question")}${data.compared ? ` and ${many(data.compared, "document")}` : ""}${data.cost.free ? "" : `, ${money(data.cost.asked_price)} at the list price`}`]);
  const percent = (share) => `${(share * 100).toFixed(share < 0.1 ? 1 : 0)} %`;
  const here = data.endpoint === "localhost";
  const where = here ? " on this machine" : data.endpoint ? ` at ${data.endpoint}` : "";
  $("title").textContent = data.title;
  $("facts").textContent = [data.total > N ? `${whole(N)} of ${whole(data.total)} texts, a random sample` : many(N, "text"),
    data.model ? `${here && !data.cost.free ? "a model named " : ""}${data.model}${where}` : "model not stored", `${whole(data.dimensions)} dimensions`, data.made].join(" · ");
  $("quality").textContent = N < 3 ? "" : `Map by ${data.projection}: ${percent(data.kept)} of the nearest neighbours are among the ten nearest on the map.`
    + (data.variance === null ? " All vectors are equal." : data.projection === "PCA" ? ` Its two axes show ${percent(data.variance)} of the variance.` : ` Two straight axes (PCA) would show ${percent(data.variance)} of the variance; distances between groups mean little.`);
  if (data.compared) facts.push(["Model", data.compared === 1 ? "1 document was embedded again and still has the stored vector" : `${whole(data.compared)} documents were embedded again and still have the stored vectors`]);
  else if (data.questions.length) facts.push(["Model", "not compared: the collection stores no documents"]);
  show($("cost"), ...facts.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
  function found(at) { return { id: data.ids[at], source: data.sources[at], text: data.texts[at] }; }
  $("export").onclick = () => {
    const out = { title: data.title, collection: data.collection, model: data.model, endpoint: data.endpoint, dimensions: data.dimensions, made: data.made, version: data.version, texts: N, total: data.total,
      questions: data.questions.map((item) => ({ question: item.text, expected: item.expected, rank: item.rank, hits: item.hits.map(([at, value]) => ({ ...found(at), cosine: value })) })),
      near_duplicates: data.near_duplicates.map(([one, two, value]) => ({ one: found(one), two: found(two), cosine: value })),
      outliers: data.outliers.map(([at, value]) => ({ ...found(at), cosine: value })) };
    const link = h("a", { href: URL.createObjectURL(new Blob([JSON.stringify(out, null, 1)], { type: "application/json" })), download: `${data.title.replace(/[^\p{L}\p{N}._-]+/gu, "-").slice(0, 60)}.json` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  };
  $("print").onclick = () => print();
  $("made").textContent = `Made by nexusflow-integrations ${data.version} on ${data.made}.`;
  colour(groupings[0]);
  resize();
  document.documentElement.dataset.ready = "yes";
})();
