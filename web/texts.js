// What nodes have to say. The frontend drops the text of a node that is not on screen, as in a folded subgraph: a toast
// says a warning, and each text stands on its node once the subgraph is opened. With each prompt the server names the
// nodes that still have a text, and the others' are taken off, also those of a server that was ended since.
import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"

const WAIT = 500, LIFE = 15000 // ms
const texts = new Map() // {"4:112": its text}
const stood = new Set() // nodes that have shown one
let lines = new Set() // of the next toast

function onScreen(id) {
    let graph = app.graph
    for (const fold of id.split(":").slice(0, -1)) graph = graph?.getNodeById(fold)?.subgraph
    return graph === app.canvas.graph
}

// By its id in the subgraph on screen: some frontends do not find it by the whole one.
function stand(id, text) {
    stood.add(id)
    const html = text.replaceAll("&", "&amp;").replaceAll("<", "&lt;") // as the frontend takes it
    api.dispatchCustomEvent("progress_text", { nodeId: id.split(":").at(-1), text: html || " " })
}

function toast() {
    const said = new Map() // {what comes before ": ": [what comes after]}
    for (const line of lines) {
        const [head, ...rest] = line.split(": "), before = said.get(head) ?? [], text = rest.join(": ")
        const more = before.some(other => other.includes(text)) ? [] : [text]
        said.set(head, [...before.filter(other => !more.length || !text.includes(other)), ...more])
    }
    const detail = [...said].map(([head, rests]) => [head, rests.join("; ")].filter(Boolean).join(": ")).join("\n")
    lines = new Set()
    app.extensionManager.toast.add({ severity: "warn", summary: "Palimpsest", detail, life: LIFE })
}

function said({ detail: { node, text, warnings } }) {
    const before = texts.get(node) ?? ""
    texts.set(node, text)
    if (onScreen(node)) return stand(node, text)
    const fresh = warnings.filter(warning => !before.includes(warning))
    if (fresh.length && !lines.size) setTimeout(toast, WAIT) // one for what is said at once
    for (const line of fresh) lines.add(line)
}

function held({ detail: { nodes } }) {
    for (const id of [...texts.keys()].filter(id => !nodes.includes(id))) {
        texts.set(id, "")
        if (onScreen(id) && stood.has(id)) stand(id, "")
    }
}

function opened() {
    for (const [id, text] of texts) if (onScreen(id) && (text || stood.has(id))) stand(id, text)
}

app.registerExtension({
    name: "Palimpsest.Texts",
    setup() {
        api.addEventListener("palimpsest.text", said)
        api.addEventListener("palimpsest.texts", held)
        app.canvas.canvas.addEventListener("litegraph:set-graph", () => setTimeout(opened, WAIT))
    },
    beforeConfigureGraph() {
        texts.clear() // another workflow has the same ids
        stood.clear()
    },
})
