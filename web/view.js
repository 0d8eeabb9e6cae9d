// The templates open where their texts can be read. Some frontends fit all of a template into the window, which may be
// too small for the texts to be drawn. Then it opens at its own zoom, with its first group at the window's corner.
import { app } from "../../scripts/app.js";

let opened;

app.registerExtension({
    name: "Palimpsest.View",
    beforeConfigureGraph(graph) {
        opened = { ...graph.extra };
    },
    afterConfigureGraph() {
        const { ds } = app.canvas;
        // a workflow of one's own opens as it was saved, whatever its zoom
        if (ds.scale === opened.ds?.scale || !(ds.scale < opened.readableFrom)) return;
        ds.offset = opened.ds.offset;
        ds.scale = opened.ds.scale;
        app.canvas.setDirty(true, true);
    },
});
