"""What the browser's tests run in the page."""
# What Nodes 2.0 draws of each node, in the canvas's units: its title, texts that are cut off, whether a note scrolls.
DRAWN = """() => [...document.querySelectorAll('[data-node-id]')].map(node => ({
    id: +node.dataset.nodeId, title: node.querySelector('[data-testid=node-title]').innerText.trim(),
    cut: [...node.querySelectorAll('.truncate')].filter(e => e.scrollWidth > e.clientWidth).map(e => e.innerText),
    scrolled: [...node.querySelectorAll('*')].some(e => e.scrollHeight > e.clientHeight + 1
        && getComputedStyle(e).overflowY === 'auto' && e.innerText.length > 50),
    size: [node.offsetWidth, node.offsetHeight]}))"""
LINKED = """() => app.graph.nodes.map(node => ({type: node.type, errors: node.has_errors,
    open: node.inputs.filter(input => input.link === null).map(input => input.name)}))"""
# By workflow, the width of its card's picture in the template browser.
THUMBNAILS = """async names => {
    const widths = {}
    for (const name of names) {
        const card = () => document.querySelector(`[data-testid="template-workflow-${name}"]`)
        while (!card()) await new Promise(requestAnimationFrame)
        card().scrollIntoView()
        while (!card().querySelector('img')?.complete) await new Promise(requestAnimationFrame)
        widths[name] = card().querySelector('img').naturalWidth
    }
    return widths
}"""
# The ids of the nodes that the node search finds for each text, once the frontend knows which nodes are popular.
FOUND = """async texts => {
    const stores = document.querySelector('#vue-app').__vue_app__.config.globalProperties.$pinia._s
    while (!stores.get('nodeFrequency')?.isLoaded) await new Promise(requestAnimationFrame)
    const search = text => stores.get('nodeDef').nodeSearchService.searchNode(text, [], {limit: 64})
    return Object.fromEntries(texts.map(text => [text, search(text).map(node => node.name)]))
}"""
# Puts the miniature in the place of a checkpoint, and gives few steps to the blueprint on the canvas.
SMALL = """() => {
    const graph = app.graph, fold = graph.nodes.find(node => node.isSubgraphNode?.())
    const old = graph.nodes.find(node => node.type === 'CheckpointLoaderSimple')
    const small = graph.add(LiteGraph.createNode('PalimpsestLoadMiniature'))
    for (const output of [0, 1, 2]) small.connect(output, fold, output)
    if (old) graph.remove(old)
    fold.widgets.find(widget => widget.name === 'steps').value = 2
    return fold.id }"""
# The words on Attention Heatmap once the pictures of a run come after those of the next one.
OVERTAKEN = """async () => {
    const node = app.graph.nodes.find(node => node.type === 'PalimpsestAttentionHeatmap')
    const found = app.nodeOutputs[node.id], [{picture, words}] = found.palimpsest_words
    const decode = Image.prototype.decode, {promise, resolve} = Promise.withResolvers(), slow = []
    Image.prototype.decode = function () { return slow[slow.push(promise.then(() => decode.call(this))) - 1] }
    node.onExecuted({palimpsest_words: [{picture, words: words.slice(0, 1)}]})
    Image.prototype.decode = decode
    node.onExecuted(found)
    await new Promise(later => setTimeout(later, 500))
    resolve()
    await Promise.all(slow)
    await new Promise(later => setTimeout(later, 500))
    return [...document.querySelectorAll('.palimpsest-words button')].map(button => button.textContent) }"""
