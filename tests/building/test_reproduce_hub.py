"""`diffpipe reproduce` of what was made with models from a hub: the pinned commits are fetched again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import Cli
from hub_server import Hub, serve
from PIL import Image

SMALL = ("--prompt", "a fox", "--width", 32, "--height", 32, "--num-inference-steps", 1, "--seed", 1)


@pytest.fixture
def repositories(checkpoints: Path, tmp_path: Path) -> dict[str, Path]:
    """A single-file Flux transformer, the folder of its settings, and a LoRA, to be changed."""
    folders = {name: tmp_path / name.replace("/", "-") for name in ("org/single", "org/flux", "org/style")}
    shutil.copytree(checkpoints / "flux", folders["org/flux"])
    for repo, file in (("org/single", "flux-transformer.safetensors"), ("org/style", "flux-lora.safetensors")):
        folders[repo].mkdir()
        shutil.copy(checkpoints / file, folders[repo])
    return folders


def move_on(hub: Hub, repositories: dict[str, Path], checkpoints: Path) -> None:
    """New commits on every main branch, the LoRA and the scheduler's settings changed; the old ones stay."""
    for repo, folder in repositories.items():
        new = Path(shutil.copytree(folder, f"{folder}-new"))
        (new / "README.md").write_text("changed")
        if repo == "org/flux":
            settings = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 9.0}
            (new / "scheduler" / "scheduler_config.json").write_text(json.dumps(settings))
        if repo == "org/style":
            shutil.copy(checkpoints / "flux-lora-2.safetensors", new / "flux-lora.safetensors")
        hub.add(repo, new)


def test_all_of_it_is_fetched_again_by_commit(checkpoints: Path, repositories: dict[str, Path], tmp_path: Path) -> None:
    with serve(repositories) as hub:
        cli = Cli(tmp_path / "home", tmp_path)
        env = {"HF_ENDPOINT": hub.url}
        model = "org/single/flux-transformer.safetensors"
        build = ("build", "flux", "--model", model, "--config", "org/flux", "--lora", "org/style@0.5")
        cli(*build, "--dtype", "float32", env=env, check=True)
        cli("generate", "flux", *SMALL, "-o", "house.png", env=env, check=True)
        commits = {repo: hub.commit(repo) for repo in repositories}
        shutil.rmtree(tmp_path / "home")
        shutil.rmtree(tmp_path / "huggingface")
        move_on(hub, repositories, checkpoints)
        assert not {hub.commit(repo) for repo in repositories} & set(commits.values())

        again = cli.fresh("reproduce", "house.png", "--verify", env=env, check=True)
        now = cli(*build, "--dtype", "float32", "--name", "now", env=env, check=True)

    assert again.stdout == "house-reproduced.png\nhouse.png: identical, byte for byte\n"
    document = json.loads(cli("inspect", "house.png", "--json", check=True).stdout)["diffpipe"]
    assert {source["label"]: source["commit"] for source in document["sources"]} == commits
    assert now.stdout.split()[1] != document["pipeline"]["key"][:12]


def test_a_component_that_is_one_file_of_a_repository(
    checkpoints: Path, repositories: dict[str, Path], tmp_path: Path
) -> None:
    part = "transformer=org/single/flux-transformer.safetensors@main"
    with serve(repositories) as hub:
        cli = Cli(tmp_path / "home", tmp_path)
        env = {"HF_ENDPOINT": hub.url}
        cli("build", "flux", "--model", "org/flux", "--component", part, "--dtype", "float32", env=env, check=True)
    cli("generate", "flux", *SMALL, "-o", "part.png", check=True)
    cli("build", "flux", "--model", checkpoints / "flux", "--dtype", "float32", "--name", "whole", check=True)
    cli("generate", "whole", *SMALL, "-o", "whole.png", check=True)

    with Image.open(tmp_path / "part.png") as made, Image.open(tmp_path / "whole.png") as whole:
        assert made.tobytes() == whole.tobytes()


def test_other_weights_of_the_same_commit_have_another_key(
    checkpoints: Path, repositories: dict[str, Path], tmp_path: Path
) -> None:
    """A variant is asked for of which the cache, without the network, holds a part."""
    for part in ("transformer", "vae"):
        name = f"{part}/diffusion_pytorch_model.fp16.safetensors"
        shutil.copy(checkpoints / "flux-fp16" / name, repositories["org/flux"] / name)
    build = ("build", "flux", "--model", "org/flux")
    with serve(repositories) as hub:
        cli = Cli(tmp_path / "home", tmp_path)
        env = {"HF_ENDPOINT": hub.url}
        cli(*build, "--name", "plain", env=env, check=True)
        whole = cli(*build, "--variant", "fp16", "--name", "whole", env=env, check=True)
    same = cli(*build, "--variant", "fp16", "--name", "same", "--offline", check=True)
    for file in tmp_path.glob("huggingface/**/transformer/*.fp16.safetensors"):
        file.unlink()
    other = cli(*build, "--variant", "fp16", "--name", "other", "--offline", "--force", check=True)

    assert same.stdout.split()[1] == whole.stdout.split()[1]
    assert other.stdout.split()[1] != whole.stdout.split()[1]


def test_files_that_the_hub_cache_lost_are_fetched_again(
    checkpoints: Path, repositories: dict[str, Path], tmp_path: Path
) -> None:
    with serve(repositories) as hub:
        cli = Cli(tmp_path / "home", tmp_path)
        env = {"HF_ENDPOINT": hub.url}
        cli("build", "flux", "--model", "org/flux", "--dtype", "float32", env=env, check=True)
        cli("generate", "flux", *SMALL, "-o", "house.png", env=env, check=True)
        shutil.rmtree(tmp_path / "huggingface")

        offline = cli("reproduce", "house.png", "--offline", env=env)
        done = cli("reproduce", "house.png", "--verify", env=env, check=True)

    assert offline.returncode == 3
    assert offline.stderr.startswith("model_index.json of org/flux was moved or removed since ")
    assert done.stdout == "house-reproduced.png\nhouse.png: identical, byte for byte\n"
