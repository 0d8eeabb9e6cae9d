// Words on the canvas. Attention Heatmap shows its picture and the words of the source: point at a word, or move the
// focus to it, to see where the model sees it; click it, or press Enter, to choose it in `words`.
import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"

const NODE = "PalimpsestAttentionHeatmap", NAME = "palimpsest_words", HEIGHT = 300 // px
const WAITS = [0, 1000] // ms: the app puts a tab's outputs back after its nodes
const TEXT_NODES = ["PrimitiveString", "PrimitiveStringMultiline", "PrimitiveNode"]
const TEXTS = {
    en: { hint: "Point at a word to see it, click to choose it",
          from: "The words come from another node: change them there" },
    zh: { hint: "指向一个词即可查看，点击即可选择", from: "这些词来自另一个节点：请在那里修改" },
}
const STYLE = `
.palimpsest-words { display: flex; flex-direction: column; gap: 4px; min-height: ${HEIGHT}px; height: 100%; contain: size;
    overflow: auto; box-sizing: border-box; padding: 4px; font: 13px sans-serif; color: var(--input-text, #ddd) }
.palimpsest-words canvas { flex: 1; width: 100%; min-height: 160px; height: 0; object-fit: contain }
.palimpsest-words p { margin: 0; display: flex; flex-wrap: wrap; gap: 3px; justify-content: center }
.palimpsest-words button { font: inherit; color: inherit; padding: 2px 6px; border-radius: 5px; cursor: pointer;
    border: 1px solid transparent; background: var(--comfy-input-bg, #222) }
.palimpsest-words button:hover, .palimpsest-words button:focus-visible { border-color: currentColor; outline: none }
.palimpsest-words button[aria-pressed=true] { background: #b06634; color: white }`

function say(text) {
    const language = app.extensionManager?.setting?.get("Comfy.Locale") ?? "en"
    return (TEXTS[language.slice(0, 2)] ?? TEXTS.en)[text]
}

// The widget that holds the words: the node's own, or that of the text node it is linked to, whose output is its text.
function field(node) {
    const slot = node.inputs?.findIndex(input => input.name === "words" && input.link != null) ?? -1
    if (slot < 0) return node.widgets.find(widget => widget.name === "words")
    const source = node.getInputNode(slot)
    if (!TEXT_NODES.includes(source?.type) || source.inputs?.some(input => input.link != null)) return null
    return source.widgets?.find(widget => widget.name === "value" && widget.type !== "combo")
}

function listed(node) {
    return (field(node)?.value ?? "").split(/[,\n]/).map(word => word.trim()).filter(Boolean)
}

const same = (a, b) => a.toLowerCase() === b.toLowerCase()
const whole = name => name.replace(/#\d+$/, "") // "cat", of "cat#2"

function isChosen(words, name) {
    return words.some(word => same(word, name) || same(word, whole(name)))
}

function toggle(node, name, all) {
    const widget = field(node)
    if (!widget) {
        app.extensionManager.toast.add({ severity: "info", summary: say("from"), life: 4000 })
        return
    }
    let words = listed(node)
    if (isChosen(words, name)) { // "cat" without "cat#2" is "cat#1"
        words = words.flatMap(word => same(word, whole(name)) ? all.filter(other => same(whole(other), word)) : [word])
        words = words.filter(word => !same(word, name))
    } else {
        words.push(name)
    }
    widget.value = words.join(", ")
    widget.callback?.(widget.value, app.canvas, node)
    app.graph.setDirtyCanvas(true, true)
}

function load(place) {
    const image = new Image()
    image.src = api.apiURL(`/view?${new URLSearchParams(place)}`)
    return image.decode().then(() => image)
}

// One picture: a canvas with the picture, or a word's map over it, above the words.
async function view(node, { picture, words }, refresh) {
    const [shown, ...maps] = await Promise.all([picture, ...words.map(word => word.map)].map(load))
    const box = document.createDocumentFragment(), line = document.createElement("p")
    const canvas = Object.assign(document.createElement("canvas"), { width: shown.width, height: shown.height })
    const pen = canvas.getContext("2d")
    pen.imageSmoothingQuality = "high"

    function draw(i) {
        pen.filter = i === null ? "none" : "grayscale(1) brightness(.8)"
        pen.drawImage(shown, 0, 0)
        pen.filter = "none"
        if (i !== null) pen.drawImage(maps[i], 0, 0, canvas.width, canvas.height)
        canvas.dataset.word = i === null ? "" : words[i].name
    }

    const names = words.map(word => word.name)
    names.forEach((name, i) => {
        const button = Object.assign(document.createElement("button"), { type: "button", textContent: name })
        for (const event of ["pointerenter", "focus"]) button.addEventListener(event, () => draw(i))
        for (const event of ["pointerleave", "blur"]) button.addEventListener(event, () => draw(null))
        button.addEventListener("keydown", event => event.stopPropagation()) // the canvas has keys of its own
        button.addEventListener("click", () => { toggle(node, name, names); refresh() })
        line.append(button)
    })
    draw(null)
    box.append(canvas, line)
    return box
}

async function show(node, pictures) {
    let widget = node.widgets.find(widget => widget.name === NAME)
    if (!widget) {
        const root = Object.assign(document.createElement("div"), { className: "palimpsest-words", title: say("hint") })
        widget = node.addDOMWidget(NAME, NAME, root, { serialize: false, hideOnZoom: false, getMinHeight: () => HEIGHT })
        widget.serialize = false
        node.setSize([node.size[0], Math.max(node.size[1], node.computeSize()[1])])
    }
    const root = widget.element
    const refresh = () => {
        const words = listed(node)
        for (const button of root.querySelectorAll("button"))
            button.setAttribute("aria-pressed", isChosen(words, button.textContent))
    }
    root.onpointerenter = root.onfocusin = refresh // the field may have been written in
    widget.latest = pictures
    const views = await Promise.all(pictures.map(picture => view(node, picture, refresh)))
    if (widget.latest !== pictures) return // a later run's are shown
    root.replaceChildren(...views)
    refresh()
}

// A node that an undo or a switch of tabs made anew shows what the app still knows that it put out.
function again(node) {
    const place = node.graph?.isRootGraph === false ? `${node.graph.id}:${node.id}` : node.id
    const pictures = app.nodeOutputs[place]?.[NAME]
    if (!pictures || node.widgets.some(widget => widget.name === NAME)) return
    show(node, pictures).catch(() => {}) // a host that was started again has no such files
}

app.registerExtension({
    name: "Palimpsest.Words",
    setup() {
        document.head.append(Object.assign(document.createElement("style"), { textContent: STYLE }))
    },
    nodeCreated(node) {
        if (node.comfyClass !== NODE) return
        const executed = node.onExecuted
        node.onExecuted = function (output) {
            executed?.apply(this, arguments)
            if (output?.[NAME]) show(this, output[NAME])
        }
        for (const wait of WAITS) setTimeout(() => again(node), wait)
    },
})
