// What nodes in a folded subgraph have to say. The frontend drops the text of a node that is not on screen: a toast
// says a warning, and each text stands on its node once the subgraph is opened.
import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"

const WAIT = 500, LIFE = 15000 // ms
const texts = new Map() // {"4:112": its text}
let lines = new Set() // of the next toast

function onScreen(id) {
    let graph = app.graph
    for (const fold of id.split(":").slice(0, -1)) graph = graph?.getNodeById(fold)?.subgraph
    return graph === app.canvas.graph
}

// By its id in the subgraph on screen: some frontends do not find it by the whole one.
function stand(id, text) {
    const html = text.replaceAll("&", "&amp;").replaceAll("<", "&lt;") // as the frontend takes it
    api.dispatchCustomEvent("progress_text", { nodeId: id.split(":").at(-1), text: html || " " })
}

function toast() {
    const detail = [...lines].join("\n")
    lines = new Set()
    app.extensionManager.toast.add({ severity: "warn", summary: "Palimpsest", detail, life: LIFE })
}

function folded({ detail: { node, text, warnings } }) {
    const before = texts.get(node) ?? ""
    texts.set(node, text)
    if (onScreen(node)) return stand(node, text)
    const fresh = warnings.filter(warning => !before.includes(warning))
    if (fresh.length && !lines.size) setTimeout(toast, WAIT) // one for what is said at once
    for (const line of fresh) lines.add(line)
}

function opened() {
    for (const [id, text] of texts) if (text && onScreen(id)) stand(id, text)
}

app.registerExtension({
    name: "Palimpsest.Folded",
    setup() {
        api.addEventListener("palimpsest.folded", folded)
        app.canvas.canvas.addEventListener("litegraph:set-graph", () => setTimeout(opened, WAIT))
    },
    beforeConfigureGraph() {
        texts.clear() // another workflow has the same ids
    },
})
