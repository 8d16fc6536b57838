// What a page does in the browser beside drawing: words and controls follow what the server tells, actions go back to it.
window.whenwhy = (() => {
  const root = document.documentElement
  const offered = JSON.parse(document.getElementById("offered").textContent)
  let state = null, number = 0, found = new Map()

  const model = (name) => window.Bokeh && Bokeh.documents.length ? Bokeh.documents[0].get_model_by_name(name) : null
  const act = (action, told = {}) => {
    const said = model("said")
    if (!said) return
    root.dataset.asked = ++number
    said.tags = [[number, action, told]]
  }
  const all = (selector) => document.querySelectorAll(selector)

  // -- from the server ---------------------------------------------------------------------------

  const put = (name, html) => {
    for (const place of all(`[data-text="${name}"]`)) {
      if (place.innerHTML === html) continue
      const open = [...place.querySelectorAll("details")].map((one) => one.open)
      place.innerHTML = html
      place.querySelectorAll("details").forEach((one, i) => { one.open = Boolean(open[i]) })
    }
  }
  const options = (select, pairs, value) => {
    const html = pairs.map(([name, words]) => {
      const option = document.createElement("option")
      option.value = name; option.textContent = words
      return option
    })
    if (select.dataset.options !== JSON.stringify(pairs)) {
      select.replaceChildren(...html)
      select.dataset.options = JSON.stringify(pairs)
    }
    if (value !== undefined) select.value = value
  }
  const show = (told) => {
    const before = state
    state = told
    const of = offered.runs[state.run]
    for (const select of all("select[data-choose]")) {
      const name = select.dataset.choose
      const pairs = name === "order" ? offered.orders.filter(([order]) => order !== "difference" || state.compared) : name === "run" ? offered.run : of[name]
      options(select, pairs, state[name])
      select.closest("label").hidden = name === "run" && pairs.length < 2
    }
    for (const select of all("select[data-compare]")) options(select, compared(of), state.against)
    for (const select of all("select[data-load]")) {
      options(select, [["", "choose …"], ...state.saved.map((name) => [name, name])], "")
      select.closest("label").hidden = state.saved.length === 0
    }
    for (const input of all("input[data-feature]")) if (document.activeElement !== input) input.value = state.feature_words
    for (const link of all("a[data-page]")) link.href = `/${link.dataset.page}?${state.address}`
    for (const one of all("[data-clear]")) one.hidden = state.is_default
    for (const one of all("details[data-part]")) one.open = state.opened.includes(one.dataset.part)
    for (const list of all("[data-saved]")) {
      list.hidden = state.forgettable.length === 0
      if (list.dataset.names === JSON.stringify(state.forgettable)) continue  // whoever is in it stays there
      list.dataset.names = JSON.stringify(state.forgettable)
      list.replaceChildren(...state.forgettable.map((name) => {
        const item = document.createElement("li"), button = document.createElement("button")
        Object.assign(button, {type: "button", className: "link", textContent: "Forget"})
        Object.assign(button.dataset, {act: "forget", name})
        button.setAttribute("aria-label", `Forget ${name}`)
        item.append(`${name} `, button)
        return item
      }))
    }
    root.toggleAttribute("data-compared", state.compared)
    root.toggleAttribute("data-marked", state.selected !== null)
    const address = `?${state.address}${location.hash}`
    if (before === null) history.replaceState(null, "", address)
    else if (before.address !== state.address) {
      history.pushState(null, "", address)
      for (const form of all('form[data-act="add"]')) form.reset()
    }
  }
  const compared = (of) => [
    ["", "nobody"],
    ["classes", "both classes, side by side"],
    ["all", "everybody"],
    ...(offered.role === "analyst" ? [["rest", "everybody else"]] : []),
    ...of.class.filter(([name]) => name !== "all").map(([name, words]) => [`class:${name}`, words]),
    ...of.stratum.filter(([name]) => name !== "all").map(([name, words]) => [`stratum:${name}`, words]),
    ...state.saved.map((name) => [`saved:${name}`, `saved: ${name}`]),
    ...(state.compared ? [["swap", "swap both"]] : []),
  ]
  const save = (name, content, type) => {
    const link = document.createElement("a")
    link.download = name
    link.href = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], {type}))
    link.click()
    setTimeout(() => URL.revokeObjectURL(link.href), 1000)
  }
  // What could not be shown cannot be taken along either: of a chart without marks a picture would be a blank sheet.
  const exportable = () => {
    for (const one of all("[data-export]")) one.parentElement.hidden = !model(one.dataset.chart)?.visible
    for (const one of all('[data-act="csv"]')) {
      const [heading, words] = ["heading", "words"].map((part) => document.querySelector(`[data-text="${one.dataset.view}_${part}"]`))
      one.hidden = Boolean(heading && words && !heading.innerHTML && words.querySelector(".words"))
    }
  }
  const told = (message) => {
    if (!message) return
    document.getElementById("lost").hidden = true  // whoever tells something is there
    root.dataset.heard = message.heard
    for (const [name, html] of Object.entries(message.texts || {})) put(name, html)
    if (message.found) suggest(message.found)
    if (message.csv) save(message.csv.name, message.csv.content, "text/csv")
    if (message.newer) document.getElementById("newer").hidden = false
    if (message.state) show(message.state)
    if (message.status) {
      root.dataset.status = message.status
      if (message.status !== "loading") exportable()
      for (const place of all(".status")) place.textContent = message.status === "loading" ? "loading …" : message.status
    }
  }
  const lost = () => {
    document.getElementById("lost").hidden = false
    root.dataset.status = "lost"
    for (const place of all(".status")) place.textContent = "no connection"
  }

  // -- from the person ---------------------------------------------------------------------------

  const suggest = (pairs) => {
    found = new Map(pairs.map(([code, words]) => [words, code]))
    for (const list of all("datalist")) {
      list.replaceChildren(...pairs.map(([, words]) => Object.assign(document.createElement("option"), {value: words})))
    }
  }
  const chosen = (words) => found.get(words) ?? (found.size ? [...found.values()][0] : undefined)
  let typing = 0
  document.addEventListener("input", (event) => {
    if (!event.target.matches("input[data-feature]")) return
    const code = found.get(event.target.value)
    if (code !== undefined && !(event.inputType || "").startsWith("insertText")) act("choose", {name: "feature", value: code})
    clearTimeout(typing)
    typing = setTimeout(() => act("search", {text: event.target.value}), 120)
  })
  document.addEventListener("change", (event) => {
    const at = event.target
    if (at.matches("select[data-choose]")) act("choose", {name: at.dataset.choose, value: at.value})
    if (at.matches("select[data-compare]")) act("compare", {with: at.value || null})
    if (at.matches("select[data-load]") && at.value) act("load", {name: at.value})
    if (at.matches("input[data-feature]")) {
      const code = chosen(at.value)
      if (code !== undefined && at.value !== state.feature_words) act("choose", {name: "feature", value: code})
    }
  })
  document.addEventListener("focusin", (event) => {
    if (event.target.matches("input[data-feature]")) { event.target.select(); act("search", {text: ""}) }
  })
  document.addEventListener("submit", (event) => {
    const form = event.target.closest("form[data-act]")
    if (!form) return
    event.preventDefault()
    const told = Object.fromEntries(new FormData(form))
    if (form.dataset.act === "add") told.condition = `where:${told.condition}`
    act(form.dataset.act, told)
    // A condition stays until it is taken: who mistyped it mends it.
    if (form.dataset.act !== "add") form.reset()
  })
  document.addEventListener("toggle", (event) => {
    const part = event.target.dataset && event.target.dataset.part
    if (part && state && state.opened.includes(part) !== event.target.open) act("open", {part, is_open: event.target.open})
  }, true)
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button")
    if (!button) return
    if (button.dataset.act) {
      const {act: action, ...told} = button.dataset
      if (action === "compare") told.with ??= null
      if (action === "select") told.condition = null
      act(action, told)
    }
    if (button.dataset.copy) navigator.clipboard.writeText(button.dataset.copy).then(() => { button.textContent = "copied" })
    if (button.dataset.export) take(button.dataset.chart, button.dataset.export)
    if (button.id === "mode") {
      const modes = ["auto", "dark", "light"]
      mode(modes[(modes.indexOf(root.dataset.mode || "auto") + 1) % 3])
    }
  })
  // A chart takes the focus, but only a person at the keyboard needs to see where it is.
  document.addEventListener("pointerdown", () => root.classList.remove("by-keyboard"), true)
  document.addEventListener("keydown", (event) => {
    if (event.key === "Tab") root.classList.add("by-keyboard")
    if (event.key === "Escape" && state && state.selected !== null) act("select", {condition: null})
  })
  addEventListener("popstate", () => location.reload())

  // A picture with what it is of below it, on paper: nobody can tell later otherwise.
  const take = async (name, kind) => {
    const chart = Bokeh.index.get_by_id(model(name).id)
    const layer = chart.export(kind, true)
    const words = [document.title, location.search.slice(1), offered.version, offered.not_a_cause].join(" · ")
    if (kind === "svg") {
      const svg = layer.ctx.get_serialized_svg(true)
      save(`${name}.svg`, svg.replace(/(<svg[^>]*>)/, (start) => `${start}<desc>${words.replace(/[<&>]/g, "")}</desc>`), "image/svg+xml")
      return
    }
    const picture = document.createElement("canvas"), from = layer.canvas, scale = window.devicePixelRatio || 1
    picture.width = from.width; picture.height = from.height + 24 * scale
    const pen = picture.getContext("2d")
    pen.fillStyle = "#fff"; pen.fillRect(0, 0, picture.width, picture.height)
    pen.drawImage(from, 0, 0)
    pen.fillStyle = "#4a5565"; pen.font = `${11 * scale}px sans-serif`
    pen.fillText(words, 8 * scale, from.height + 15 * scale, picture.width - 16 * scale)
    picture.toBlob((blob) => save(`${name}.png`, blob))
  }
  const mode = (name) => {
    if (name === "auto") delete root.dataset.mode
    else root.dataset.mode = name
    try { localStorage.setItem("whenwhy-mode", name) } catch { /* a page without storage keeps it while it is open */ }
    document.getElementById("mode").textContent = {auto: "Colours: as the system", dark: "Colours: dark", light: "Colours: light"}[name]
  }
  let remembered = "auto"
  try { remembered = localStorage.getItem("whenwhy-mode") || "auto" } catch { /* as above */ }
  mode(["dark", "light"].includes(remembered) ? remembered : "auto")

  return {told, lost, act, ready: () => told(model("told")?.tags[0]), state: () => state}
})()
