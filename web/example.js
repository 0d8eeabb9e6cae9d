// The picture with which the Start-here templates open. Load Image finds it among the host's inputs, so it is put
// there when such a template is opened and not before.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const NAME = "palimpsest_example.jpg";

async function upload() {
    const picture = await fetch(new URL("example.jpg", import.meta.url));
    const form = new FormData();
    form.append("image", new File([await picture.blob()], NAME, { type: "image/jpeg" }));
    form.append("overwrite", "true");
    await api.fetchApi("/upload/image", { method: "POST", body: form });
}

app.registerExtension({
    name: "Palimpsest.Example",
    async beforeConfigureGraph(graph) {
        const asks = graph.nodes.some(node => node.type === "LoadImage" && node.widgets_values?.[0] === NAME);
        const known = LiteGraph.registered_node_types.LoadImage?.nodeData?.input.required.image;
        const listed = known && (Array.isArray(known[0]) ? known[0] : known[1].options);
        if (!asks || !listed || listed.includes(NAME)) return;
        await upload();
        listed.push(NAME);
    },
});
