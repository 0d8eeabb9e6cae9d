"""A small workflow on the miniature, as ComfyUI exports it for the API."""
GRAPH = {
    "model": {"class_type": "PalimpsestLoadMiniature", "inputs": {}},
    "scene": {"class_type": "PalimpsestMiniatureScene", "inputs": {"seed": 0, "kind": "colour"},
              "_meta": {"title": "Scene"}},
    "words": {"class_type": "PalimpsestPromptEdit", "inputs": {
        "clip": ["model", 1], "source": ["scene", 1], "target": ["scene", 2], "mode": "auto"}},
    "negative": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["model", 1]}},
    "encoded": {"class_type": "VAEEncode", "inputs": {"pixels": ["scene", 0], "vae": ["model", 2]}},
    "inversion": {"class_type": "PalimpsestDDIMInvert", "inputs": {
        "model": ["model", 0], "source": ["words", 0], "latent": ["encoded", 0], "steps": 2,
        "scheduler": "ddim_uniform"}},
    "start": {"class_type": "PalimpsestReplay", "inputs": {
        "model": ["model", 0], "inversion": ["inversion", 0], "start": 0.0}},
    "sample": {"class_type": "SamplerCustom", "inputs": {
        "model": ["start", 0], "add_noise": False, "noise_seed": 0, "cfg": 3.0, "positive": ["words", 1],
        "negative": ["negative", 0], "sampler": ["start", 1], "sigmas": ["start", 2], "latent_image": ["start", 3]},
        "_meta": {"title": "Sample"}},
    "decoded": {"class_type": "VAEDecode", "inputs": {"samples": ["sample", 0], "vae": ["model", 2]}},
    "fault": {"class_type": "BatchTestFault", "inputs": {"image": ["decoded", 0], "what": "nothing"},
              "_meta": {"title": "Fault"}},
    "report": {"class_type": "PalimpsestEditReport", "inputs": {"source": ["scene", 0], "edited": ["fault", 0]},
               "_meta": {"title": "Report"}},
    "saved": {"class_type": "SaveImage", "inputs": {"images": ["fault", 0], "filename_prefix": "edited"},
              "_meta": {"title": "Save"}},
}
