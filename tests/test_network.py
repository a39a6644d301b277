import pytest
import torch
from torch import nn

from models import MODELS
from pipeline.cli_options import training
from pipeline.errors import BadInput, Missing, UsageError
from pipeline.network import find_network


@pytest.mark.parametrize(
    ("name", "parameters"), [("lenet5", 61_706), ("lenet5-classic", 61_706), ("mlp", 60_430)]
)
def test_the_built_in_networks_have_the_sizes_they_promise(name, parameters):
    network = find_network(name).build(10)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


@pytest.mark.parametrize("name", MODELS)
def test_a_network_gives_a_score_for_each_class(name):
    network = find_network(name)
    assert network.build(7)(torch.zeros(3, *network.input_shape)).shape == (3, 7)


@pytest.mark.parametrize(
    ("name", "activation", "expected"),
    [
        ("lenet5", None, (nn.ReLU, nn.MaxPool2d)),
        ("lenet5", "relu", (nn.ReLU, nn.MaxPool2d)),
        ("lenet5-classic", None, (nn.Sigmoid, nn.AvgPool2d)),
        ("lenet5-classic", "tanh", (nn.Tanh, nn.AvgPool2d)),
    ],
)
def test_activation_and_pooling(name, activation, expected):
    kinds = [type(layer) for layer in find_network(name, activation).build(10).modules()]
    known = (nn.ReLU, nn.Sigmoid, nn.Tanh, nn.MaxPool2d, nn.AvgPool2d)
    assert {kind for kind in kinds if kind in known} == set(expected)


HEAD = "import torch\nfrom torch import nn\n"
BODY = """
    def forward(self, x):
        return self.layer(x.flatten(1))
"""


def net(constructor, shape="input_shape = (3, 4, 6)", forward=BODY):
    """The source of a class MyNet for pictures of 3 x 4 x 6: 72 values."""
    return f"""{HEAD}
class MyNet(nn.Module):
    {shape}
    def __init__(self, {constructor}):
        super().__init__()
        self.layer = nn.Linear(72, {constructor.split("=")[0] or 5})
{forward}"""


@pytest.mark.parametrize("constructor", ["classes", "num_classes", "classes=10", ""])
def test_a_class_in_ones_own_file(tmp_path, constructor):
    path = tmp_path / "mynet.py"
    path.write_text(net(constructor))
    network = find_network(f"{path}:MyNet")
    assert (network.name, network.input_shape) == ("my-net", (3, 4, 6))
    assert network.build(5)(torch.zeros(2, 3, 4, 6)).shape == (2, 5)


def test_a_class_says_how_it_is_trained_unless_the_person_does(tmp_path):
    said = "learning_rate, label_smoothing, weight_decay = 0.03, 0.25, 0.125"
    (tmp_path / "mynet.py").write_text(net("classes", f"input_shape = (1, 8, 9)\n    {said}"))
    options = dict.fromkeys(["activation", "input_shape", "augment", "data_dir", "epochs"])
    options |= {"dataset": "digits", "seed": 0, "device": "cpu"}

    def recipe(model, **given):
        _, config, _ = training(options | {"model": model} | given)
        return config.learning_rate, config.label_smoothing, config.weight_decay

    own = f"{tmp_path / 'mynet.py'}:MyNet"
    assert recipe(own) == (0.03, 0.25, 0.125)
    assert recipe(own, lr=0.01, label_smoothing=0.0, weight_decay=0.0) == (0.01, 0.0, 0.0)
    assert recipe("mlp") == (1e-2, 0.1, 0.05)


def test_an_input_shape_can_be_given(tmp_path):
    path = tmp_path / "mynet.py"
    path.write_text(net("classes", shape=""))
    network = find_network(f"{path}:MyNet", input_shape=(3, 6, 4))
    assert network.input_shape == (3, 6, 4)
    network.build(5)


@pytest.mark.parametrize(
    ("name", "activation", "says"),
    [
        ("lenet", None, "unknown model 'lenet'; did you mean 'lenet5'"),
        ("mynet.py", None, "unknown model 'mynet.py'.*FILE.py:ClassName"),
        ("lenet5-classic", "tanhh", "unknown activation .*'tanhh'; did you mean 'tanh'"),
        ("lenet5", "sigmoid", "unknown activation of lenet5 'sigmoid'; known: relu"),
        ("mlp", "tanh", "mlp has no choice of activation; leave out --activation"),
    ],
)
def test_what_a_name_can_be_is_told(name, activation, says):
    with pytest.raises(UsageError, match=says):
        find_network(name, activation)


OWN = {
    "missing file": (None, Missing, ["mynet.py", "no such file"]),
    "missing class": (net("classes").replace("MyNet", "MyNets"), UsageError, ["'MyNets'"]),
    "no network": (HEAD + "MyNet = 3", UsageError, ["MyNet", "nn.Module"]),
    "syntax error": (net("classes") + "\n    def", BadInput, ["mynet.py", "SyntaxError", "line"]),
    "import error": ("import numpyy", BadInput, ["mynet.py", "ModuleNotFoundError", "numpyy"]),
    "constructor raises": (
        net("classes", forward="        raise ValueError('too wide')" + BODY),
        BadInput,
        ["my-net", "ValueError: too wide", "constructor"],
    ),
    "constructor needs more": (net("classes, width"), BadInput, ["my-net", "width"]),
    "forward raises": (
        net("classes", shape="input_shape = (3, 5, 6)"),
        BadInput,
        ["my-net", "(2, 3, 5, 6)", "RuntimeError", "input_shape"],
    ),
    "constructor raises many lines": (  # torch lists every missing weight on its own line
        net("classes", forward="        self.load_state_dict({})" + BODY),
        BadInput,
        ["my-net", "RuntimeError", "state_dict"],
    ),
    "no forward": (net("classes", forward=""), BadInput, ["my-net", "forward"]),
    "wrong number of outputs": (net("").replace("5)", "9)"), BadInput, ["(2, 9)", "(2, 5)"]),
    "a tuple of outputs": (
        net("classes", forward=BODY.replace("x.flatten(1))", "x.flatten(1)), x")),
        BadInput,
        ["tuple", "(2, 5)"],
    ),
    "no input shape": (net("classes", shape=""), UsageError, ["--input-shape", "input_shape ="]),
    "two channels": (net("classes", "input_shape = (2, 6, 6)"), UsageError, ["2,6,6", "C is 1"]),
    "no height": (net("classes", "input_shape = (1, 0, 6)"), UsageError, ["1,0,6", "above 0"]),
    "two sizes": (net("classes", "input_shape = (28, 28)"), UsageError, ["input_shape", "28"]),
}


@pytest.mark.parametrize(("source", "error", "words"), OWN.values(), ids=OWN)
def test_what_is_wrong_with_ones_own_file_is_one_line(tmp_path, source, error, words):
    path = tmp_path / "mynet.py"
    if source is not None:
        path.write_text(source)
    with pytest.raises(error) as caught:
        find_network(f"{path}:MyNet").build(5)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    for word in words:
        assert word in message


def test_the_nearest_class_is_guessed(tmp_path):
    path = tmp_path / "mynet.py"
    path.write_text(net("classes"))
    with pytest.raises(UsageError, match=r"nn.Module in .*mynet.py 'MyNte'; did you mean 'MyNet'"):
        find_network(f"{path}:MyNte")
