// The pictures with which the Start-here templates open. Load Image finds them among the host's inputs, so one is put
// there when such a template is opened and not before.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const PICTURES = {
    "palimpsest_example.jpg": "example.jpg",
    "palimpsest_painted.webp": "painted.webp",
};

// Whether it is there now. Where it is not, Load Image says what it lacks.
async function upload(name) {
    const picture = await fetch(new URL(PICTURES[name], import.meta.url));
    if (!picture.ok) return false;
    const form = new FormData();
    form.append("image", new File([await picture.blob()], name));
    form.append("overwrite", "true");
    return (await api.fetchApi("/upload/image", { method: "POST", body: form })).ok;
}

app.registerExtension({
    name: "Palimpsest.Example",
    async beforeConfigureGraph(graph) {
        const known = LiteGraph.registered_node_types.LoadImage?.nodeData?.input.required.image;
        const listed = known && (Array.isArray(known[0]) ? known[0] : known[1].options);
        for (const name of listed ? Object.keys(PICTURES) : []) {
            const asks = graph.nodes.some(node => node.type === "LoadImage" && node.widgets_values?.[0] === name);
            if (!asks || listed.includes(name)) continue;
            if (await upload(name)) listed.push(name);
        }
    },
});
