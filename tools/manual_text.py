"""What the manual pages say that the command tree does not know. generate_docs.py fails where a row is missing."""

from __future__ import annotations

from diffpipe.core.errors import Exit

FIELDS = {
    "name": "the pipeline's name, as given",
    "key": "the first 12 digits of its key",
    "id": "12 digits that stand for this pipeline, these arguments and this seed",
    "index": "the number of the file in this run, from 1",
    "seed": "the seed of the item",
    "prompt": "the prompt, made fit for a file name and cut to its longest length",
    "ext": "the ending of the file format, without the dot",
}
EXIT = {
    Exit.OK: "done",
    Exit.FAILED: "failed",
    Exit.USAGE: "the command line cannot be used as given",
    Exit.NOT_FOUND: "a pipeline, provider, repository, revision or file that does not exist, or a server out of reach",
    Exit.ACCESS: "a repository that needs a token, a licence to be accepted, or a token that may do more",
    Exit.OUT_OF_MEMORY: "out of memory",
    Exit.CACHE: "a full disk, a damaged cache entry, or a source that changed or moved since the build",
    Exit.PARTIAL: "some items of a batch failed",
    Exit.INTERRUPTED: "interrupted",
}
ENVIRONMENT = {
    "DIFFPIPE_HOME": "The cache folder. Default: diffpipe in the user's cache folder (~/.cache/diffpipe on Linux).",
    "DIFFPIPE_OFFLINE": "If 1, use only what is on this machine, as --offline does.",
    "DIFFPIPE_KEEP_WARM": "The default of --keep-warm: for how long a worker keeps a pipeline loaded, for example 5m.",
    "DIFFPIPE_TRACEBACK": "If set, show where an error came from, as --traceback does.",
    "HF_TOKEN, HUGGINGFACE_HUB_ACCESS_TOKEN": "Access token for the hub; else the one that `hf auth login` saved.",
    "HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE": "The hub client's own: where models are kept, which hub, no connections.",
    "NO_COLOR": "If set, no colours.",
}
FILES = {
    "pipelines/KEY/": "a built pipeline: summary.json, manifest.json (its configuration and flags, with a digest) and "
    "sources.json (where its files lie on this machine)",
    "weights/KEY/": "quantized weights",
    "blobs/, sources/": "files that came in bundles, and their names",
    "names/NAME": "the key that a name stands for",
    "headers/": "the names and shapes of tensors that plan read of repositories",
    "pins/, digests/": "what branches and tags stood for; digests of local files, to read them once",
    "locks/, temporary/": "of builds that are running",
}
EXAMPLES = {
    "A first picture, with the model that comes with diffpipe:": (
        "diffpipe build demo",
        'diffpipe generate demo --prompt "a panda on a pink background"',
    ),
    "Build another model and make three pictures with it:": (
        "diffpipe build flux --model black-forest-labs/FLUX.1-schnell",
        'diffpipe generate flux --prompt "a lighthouse at dusk" --num-inference-steps 4 --count 3 --seed 7',
    ),
    "Build a folder of this machine under another name, and see what can be said to it:": (
        "diffpipe build flux --model ./my-model --name mine",
        "diffpipe generate mine --help",
    ),
    "What was a file made with? Make it again, and compare:": (
        "diffpipe inspect demo-7.png",
        "diffpipe reproduce demo-7.png --verify",
    ),
    "What is there, and is it whole?": ("diffpipe pipelines list", "diffpipe pipelines verify"),
    "Take it to another machine:": ("diffpipe pipelines export mine mine.tar", "diffpipe pipelines import mine.tar"),
}
CALL_FLAGS = (
    "Flags of a pipeline are read from its own call when it is built: their names, types, defaults and help are those "
    "of diffusers, with an underscore written as a hyphen. `diffpipe generate PIPELINE --help` shows them.",
    "Text, numbers and choices are given as such. A switch is --flag or --no-flag. Pictures, masks, videos and sounds "
    "are paths of files. Dictionaries are JSON. A flag whose call takes a list may be repeated. Flags marked "
    "[required] must be given. Out-of-range values are refused before anything is loaded.",
    "Arguments that fit no command line (embeddings, latents, callbacks) have no flag. --set passes any other "
    "argument that can be written as JSON, for example --set 'joint_attention_kwargs={\"scale\": 0.8}'.",
)
BUILD_OPTIONS = (
    "Options common to the built-in providers; where a default or a choice differs, each provider lists its own. "
    "Packages can add providers: `diffpipe providers list` shows all, `diffpipe build PROVIDER --help` their options.",
)
SWITCHES = {
    "-h, --help": "Show help and exit. Any command takes it.",
    "--version": "Show the version and exit.",
    "--traceback": "Show where an error came from. Any command takes it.",
}
