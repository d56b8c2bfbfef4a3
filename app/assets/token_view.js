// Hover, keys, jumps and the cursor of a token view. It writes text through textContent only.
function mountTokenView(root, sides) {
  const info = root.querySelector(".tv-info");
  const columns = [...root.querySelectorAll(".tv-text")].map((text) => [...text.querySelectorAll(".t")]);
  const place = new Map();
  columns.forEach((tokens) => tokens.forEach((token, i) => place.set(token, i)));
  const cursor = root.querySelector(".cursor");
  const count = columns.length ? columns[0].length : 0;
  let here = -1;

  const cell = (kind, text, row) => {
    const made = document.createElement(kind);
    made.textContent = text;
    row.append(made);
  };
  const shown = (value) => {
    if (value === null || value === undefined) return "–";
    if (typeof value === "boolean") return value ? "yes" : "no";
    return typeof value === "number" && !Number.isInteger(value) ? value.toFixed(3) : String(value);
  };
  const describe = (i) => {
    const title = document.createElement("div");
    const word = document.createElement("b");
    word.textContent = JSON.stringify(sides[0].text[i] ?? "") + " ";
    title.append(word, `token ${i + 1} of ${count}, id ${sides[0].ids[i]}`);
    const table = document.createElement("table");
    const head = document.createElement("tr");
    cell("th", "nats; ranks from 1", head);
    sides[0].columns.forEach((name) => cell("th", name, head));
    table.append(head);
    sides.forEach((side) => {
      const row = document.createElement("tr");
      cell("td", side.title, row);
      side.rows[i].forEach((value) => cell("td", shown(value), row));
      table.append(row);
    });
    info.replaceChildren(title, table);
  };
  const show = (i, scroll) => {
    if (i < 0 || i >= count) return;
    columns.forEach((tokens) => {
      tokens[here]?.classList.remove("here");
      tokens[i]?.classList.add("here");
      if (scroll) tokens[i]?.scrollIntoView({ block: "nearest", inline: "nearest" });
    });
    here = i;
    describe(i);
    const x = String(((i + 0.5) / count) * 1000);
    cursor?.setAttribute("x1", x);
    cursor?.setAttribute("x2", x);
  };

  root.addEventListener("mouseover", (event) => {
    const token = event.target.closest?.(".t");
    if (place.has(token)) show(place.get(token), false);
  });
  root.querySelectorAll(".tv-text").forEach((text) =>
    text.addEventListener("keydown", (event) => {
      const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!by) return;
      event.preventDefault();
      event.stopPropagation();
      show(here + by, true);
    }),
  );
  root.querySelector(".tv-curve svg")?.addEventListener("click", (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    show(Math.min(count - 1, Math.floor(((event.clientX - box.left) / box.width) * count)), true);
  });
  root.querySelectorAll("button[data-jump]").forEach((button) => {
    const stops = button.dataset.jump.split(",").map(Number);
    let next = 0;
    button.addEventListener("click", () => show(stops[next++ % stops.length], true));
  });
}
