"""Pictures of wirings: recognisable, finite, and safe to show whoever wrote them."""

from itertools import pairwise
from xml.etree import ElementTree as ET

from protos.diagram import MAX_BOXES, draw_svg, layers
from protos.wiring import Block, EdgeType, Parameter, Wiring


def chain(names: list[str], *, width: int = 4) -> Wiring:
    """Square layers, one after the other."""
    parameters = tuple(Parameter(name, (width, width)) for name in names)
    places = {"source_stride": 1, "target_stride": width}
    blocks = tuple(
        Block(int(EdgeType.LINEAR), index * width, width, (index + 1) * width, width, parameter=index, **places)
        for index in range(len(names))
    )
    return Wiring(parameters, width * (len(names) + 1), blocks)


def test_a_hundred_alike_layers_are_one_box() -> None:
    """A transformer would be a picture of thousands of boxes, in which nobody finds anything."""
    inner = [f"h.{index}.{part}.weight" for index in range(100) for part in ("up", "down")]
    diagram = layers(chain(["embed.weight", *inner, "head.weight"]))
    names = ["embed", "h.0.up", "h.0.down", "head"]
    assert [box.name for box in diagram.boxes] == names
    assert {fold.times for box in diagram.boxes for fold in box.folds} == {100}
    assert [(box.name, other.name) for box, other, _ in diagram.links] == list(pairwise(names))
    assert [box.rank for box in diagram.boxes] == [0, 1, 2, 3]


def test_layers_that_differ_are_not_folded() -> None:
    """A network would be shown as more regular than it is."""
    wiring = chain(["layers.0.weight", "layers.1.weight"])
    odd = Wiring((wiring.parameters[0], Parameter("layers.1.weight", (8, 4))), 20, wiring.blocks[:1])
    assert [len(box.folds) for box in layers(wiring).boxes] == [1]
    assert [box.name for box in layers(odd).boxes] == ["layers.0", "layers.1"]


def test_residual_connections_go_around_what_they_skip() -> None:
    """Where a network is residual would not be seen."""
    wiring = chain(["a.weight", "b.weight", "c.weight"])
    tie = Block(int(EdgeType.RESIDUAL), 4, 4, 12, 4, diagonal=True)
    links = layers(Wiring(wiring.parameters, wiring.neurons, (*wiring.blocks, tie))).links
    assert [(box.name, other.name) for box, other, residual in links if residual] == [("a", "c")]


def test_picture_is_xml_whatever_names_there_are() -> None:
    """A name with markup in it would break the picture, or run in the page that shows it."""
    picture = draw_svg(chain(['<b>&".weight', "]]><script>.weight"]), alone=True)
    tree = ET.fromstring(picture)
    assert not tree.findall(".//{http://www.w3.org/2000/svg}script")


def test_picture_of_many_modules_ends() -> None:
    """A wiring of any number of modules would hang the server that draws it."""
    diagram = layers(chain([f"m{index}.{'x' * (index % 7)}.weight" for index in range(2000)]))
    assert len(diagram.boxes) == MAX_BOXES
    assert diagram.left_out == 2000 - MAX_BOXES
