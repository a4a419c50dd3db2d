"""Published networks: RRDBNet's files in both layouts, gray from colors, safe loading, and others by spandrel."""

import importlib
import importlib.util
import pickle
import sys

import pytest
import torch
from safetensors.torch import save_file

from medsr.methods import RRDBNet
from medsr.methods.foreign import ForeignFileError, ForeignUpscaler, load_foreign, load_weights
from medsr.scan import Grid
from medsr.upscaler import Composed, Upscaler, fingerprint, has_stages
from tests import laws
from tests.methods_asked import mammogram, noise
from tests.test_esrgan import old_name

spandrel_there = pytest.mark.skipif(
    importlib.util.find_spec("spandrel") is None, reason="spandrel is not installed (pip install 'medsr[foreign]')"
)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def published(factor=(4, 4), *, channels=3, features=6, blocks=1, growth=3) -> RRDBNet:
    """Random weights, biases too, of the published layers."""
    torch.manual_seed(0)
    network = RRDBNet(factor, channels=channels, features=features, blocks=blocks, growth=growth, published=True)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return network.eval()


def from_colors(network, low):
    with torch.no_grad():
        return network(low.expand(-1, 3, -1, -1)).mean(1, keepdim=True)


# ---------------------------------------------------------------- RRDBNet's files


@pytest.mark.parametrize("layout", ["new", "old"])
@pytest.mark.parametrize("form", ["safetensors", "pth", "wrapped", "half"])
def test_both_layouts_in_every_form(tmp_path, layout, form):
    network = published()
    weights = network.state_dict()
    if layout == "old":
        weights = {old_name(name, blocks=1, rises=2): value for name, value in weights.items()}
    path = tmp_path / ("net.pth" if form in ("pth", "wrapped") else "net.safetensors")
    if form == "half":
        save_file({name: value.half() for name, value in weights.items()}, path)
    elif form == "safetensors":
        save_file(weights, path)
    else:
        torch.save({"params": {}, "params_ema": weights} if form == "wrapped" else weights, path)
    upscaler = load_foreign(path)
    assert upscaler.factor == (4, 4)
    assert upscaler.halo == network.halo
    low = noise(2, 1, 13, 10)
    with torch.no_grad():
        worst = float((upscaler(low) - from_colors(network, low)).abs().max())
    assert worst < (5e-3 if form == "half" else 1e-5)


@pytest.mark.parametrize(("factor", "rises"), [((2, 2), 1), ((8, 8), 3)])
def test_the_factor_is_that_of_the_layers(tmp_path, factor, rises):
    network = published(factor)
    weights = {old_name(name, blocks=1, rises=rises): value for name, value in network.state_dict().items()}
    save_file(weights, tmp_path / "net.safetensors")
    upscaler = load_foreign(tmp_path / "net.safetensors")
    low = noise(1, 1, 6, 7)
    with torch.no_grad():
        torch.testing.assert_close(upscaler(low), from_colors(network, low), rtol=0, atol=1e-5)


def test_a_gray_network_is_taken_as_it_is(tmp_path):
    network = published((2, 2), channels=1)
    save_file(network.state_dict(), tmp_path / "net.safetensors")
    low = noise(1, 1, 9, 9)
    with torch.no_grad():
        assert torch.equal(load_foreign(tmp_path / "net.safetensors")(low), network(low))


def test_it_obeys_the_contract(tmp_path):
    save_file(published((2, 2)).state_dict(), tmp_path / "net.safetensors")
    upscaler = load_foreign(tmp_path / "net.safetensors")
    assert isinstance(upscaler, ForeignUpscaler)
    assert isinstance(upscaler, Upscaler)
    assert isinstance(upscaler, Composed)
    assert has_stages(upscaler)
    assert upscaler.adapt(None) is upscaler
    assert "RRDBNet" in repr(upscaler)
    assert fingerprint(upscaler) == fingerprint(load_foreign(tmp_path / "net.safetensors"))
    low = mammogram()[..., :70, :60]
    for tile in laws.tile_sizes((70, 60)):
        laws.tiled_equals_whole(upscaler, low, tile)
    with torch.no_grad():
        assert torch.equal(upscaler.around(low, [upscaler.parts[0]]), upscaler(low))
        beyond = upscaler(3 * low + 5)
    assert float(beyond.max()) > 1 or float(beyond.min()) < 0, "nothing is clipped"


def test_the_engine_runs_it_as_it_stands(tmp_path):
    """By the whole road of an upscale, in tiles."""
    import numpy as np

    import medsr
    from medsr.scan import Intensity, Scan

    save_file(published((2, 2)).state_dict(), tmp_path / "net.safetensors")
    upscaler = load_foreign(tmp_path / "net.safetensors")
    stored = (mammogram()[0, 0, :64, :48].clamp(0, 1) * 60000).round().numpy().astype(np.uint16)
    scan = Scan(stored, Grid(("y", "x"), (50.0, 50.0)), Intensity(0, 60000, np.dtype(np.uint16)))
    fine = medsr.upscale(scan, upscaler)
    low = torch.from_numpy(scan.intensity.to_unit(stored))[None, None]
    with torch.no_grad():
        expected = scan.intensity.to_stored(upscaler(low)[0, 0].numpy())
    assert np.abs(fine.read().astype(np.int64) - expected).max() <= 1


def test_a_halo_can_be_measured_or_given(tmp_path):
    pytest.importorskip("medsr.methods.seams")
    network = published((2, 2), blocks=2)
    save_file(network.state_dict(), tmp_path / "net.safetensors")
    assert load_foreign(tmp_path / "net.safetensors", halo=(9, 8)).halo == (9, 8)
    measured = load_foreign(tmp_path / "net.safetensors", halo="measured")
    assert all(0 < m <= h for m, h in zip(measured.halo, network.halo, strict=True))
    low = mammogram()[..., :200, :180]
    laws.tiled_equals_whole(measured, low, (90, 70))


# ---------------------------------------------------------------- what is refused


class Runs:
    """What a hostile file does when it is unpickled by a loader that lets it."""

    def __reduce__(self):
        return (exec, ("import sys; sys.modules['was_run'] = sys",))


def test_a_pickle_that_runs_code_is_refused_and_runs_nothing(tmp_path):
    path = tmp_path / "net.pth"
    torch.save({"conv_first.weight": torch.zeros(1), "more": Runs()}, path)
    with pytest.raises(ForeignFileError, match=r"net\.pth: expected tensors only.*nothing was executed"):
        load_foreign(path)
    path.write_bytes(pickle.dumps(Runs()))
    with pytest.raises(ForeignFileError, match="expected tensors only"):
        load_foreign(path)
    assert "was_run" not in sys.modules


def test_a_whole_module_in_a_pickle_is_refused(tmp_path):
    torch.save(torch.nn.Linear(1, 1), tmp_path / "net.pth")
    with pytest.raises(ForeignFileError, match=r"convert it where you trust its maker"):
        load_foreign(tmp_path / "net.pth")


def test_files_that_hold_no_weights_are_refused(tmp_path):
    with pytest.raises(ForeignFileError, match="found none; check the path"):
        load_weights(tmp_path / "none.safetensors")
    torn = tmp_path / "torn.safetensors"
    save_file({"a": torch.zeros(99)}, torn)
    torn.write_bytes(torn.read_bytes()[:90])
    with pytest.raises(ForeignFileError, match="expected whole safetensors"):
        load_weights(torn)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ForeignFileError, match="expected weights by name, found list"):
        load_weights(tmp_path / "list.pth")


def test_variants_of_rrdbnet_are_named(tmp_path):
    path = tmp_path / "net.safetensors"
    weights = published((2, 2)).state_dict()
    save_file({**weights, "body.0.rdb1.conv1x1.weight": torch.zeros(1)}, path)
    with pytest.raises(ForeignFileError, match=r"expected the layers of RRDBNet, found others.*conv1x1"):
        load_foreign(path)
    blocks_of_samples = {**weights, "conv_first.weight": weights["conv_first.weight"].repeat(1, 4, 1, 1)}
    save_file(blocks_of_samples, path)
    with pytest.raises(ForeignFileError, match="found one of 12, which takes blocks of samples for colors"):
        load_foreign(path)
    save_file({name: value for name, value in weights.items() if "up" not in name}, path)
    with pytest.raises(ForeignFileError, match="found RRDBNet of factor 1"):
        load_foreign(path)


@pytest.mark.skipif(importlib.util.find_spec("spandrel") is not None, reason="spandrel is installed")
def test_another_network_asks_for_spandrel(tmp_path):
    save_file({"body.0.weight": torch.zeros(3, 3)}, tmp_path / "net.safetensors")
    with pytest.raises(ImportError, match=r"pip install 'medsr\[foreign\]'"):
        load_foreign(tmp_path / "net.safetensors")


# ---------------------------------------------------------------- by spandrel


def theirs(kind: str, file: str, name: str):
    """A network class of spandrel's."""
    from medsr.methods.foreign import _spandrel

    _spandrel()
    return getattr(importlib.import_module(f"spandrel.architectures.{kind}.__arch.{file}"), name)


@spandrel_there
@pytest.mark.filterwarnings("ignore")
def test_spandrel_runs_rrdbnet_alike(tmp_path):
    from medsr.methods.foreign import _spandrel

    network = published((4, 4), features=8, growth=32)
    save_file(network.state_dict(), tmp_path / "net.safetensors")
    other = _spandrel().ModelLoader().load_from_file(tmp_path / "net.safetensors")
    low = noise(1, 1, 17, 14)
    with torch.no_grad():
        ours = load_foreign(tmp_path / "net.safetensors")(low)
        assert float((ours - from_colors(other.model, low)).abs().max()) < 1e-5
        assert float((from_colors(network, low) - from_colors(other.model, low)).abs().max()) < 1e-5


@spandrel_there
@pytest.mark.filterwarnings("ignore")
def test_another_network_by_spandrel(tmp_path):
    """Its halo is measured, its colors averaged, and nothing is clipped."""
    torch.manual_seed(0)
    network = theirs("Compact", "SRVGG", "SRVGGNetCompact")(num_feat=8, num_conv=2, upscale=2).eval()
    torch.save({"params": network.state_dict()}, tmp_path / "net.pth")
    upscaler = load_foreign(tmp_path / "net.pth")
    assert upscaler.factor == (2, 2)
    assert 1 <= max(upscaler.halo) <= 16
    low = mammogram()[..., :60, :50]
    laws.tiled_equals_whole(upscaler, low, (25, 20))
    with torch.no_grad():
        assert torch.equal(upscaler(4 * low), from_colors(network, 4 * low))
        assert float(upscaler(4 * low).max()) > 1


@spandrel_there
@pytest.mark.filterwarnings("ignore")
def test_a_network_of_windows_is_refused_unless_a_halo_is_given(tmp_path):
    torch.manual_seed(0)
    network = theirs("SwinIR", "SwinIR", "SwinIR")(
        img_size=16, depths=(2,), embed_dim=12, num_heads=(2,), window_size=8, upscale=2, upsampler="pixelshuffledirect"
    )
    torch.save(network.state_dict(), tmp_path / "net.pth")
    with pytest.raises(ForeignFileError, match="does not depend on where a tile begins"):
        load_foreign(tmp_path / "net.pth")
    upscaler = load_foreign(tmp_path / "net.pth", halo=(16, 16))
    with torch.no_grad():
        assert upscaler(noise(1, 1, 13, 21)).shape == (1, 1, 26, 42)


@spandrel_there
@pytest.mark.filterwarnings("ignore")
def test_what_spandrel_does_not_know_is_named(tmp_path):
    save_file({"something.weight": torch.zeros(3, 3)}, tmp_path / "net.safetensors")
    with pytest.raises(ForeignFileError, match="expected a network that spandrel knows"):
        load_foreign(tmp_path / "net.safetensors")
