from kinescan.models.model_card import model_card


def _card(labels: list[str]) -> str:
    return model_card(
        name="pks4_vit_b16",
        config={"width": 768, "class_token_route": "conv"},
        labels=labels,
        preprocessing={"num_frames": 8, "mean": [0.5, 0.5, 0.5]},
        num_parameters=91_693_550,
    )


def test_card_tells_architecture_labels_preprocessing_and_use() -> None:
    card = _card(["opening a door", "closing a door"])
    assert card.startswith("---\nlibrary_name: kinescan\npipeline_tag: video-classification\n")
    assert "91,693,550 parameters" in card
    assert "0. opening a door\n1. closing a door" in card
    assert "| width | 768 |" in card
    assert "| num_frames | 8 |" in card
    assert "ks.from_pretrained(" in card


def test_labels_cannot_break_the_card() -> None:
    card = _card(["two\nlines", "a | b", "<script>", "`code`"])
    assert "0. two lines\n1. a \\| b\n2. \\<script\\>\n3. \\`code\\`" in card


def test_many_labels_are_cut() -> None:
    card = _card([f"label {i}" for i in range(50)])
    assert "label 39" in card
    assert "label 40" not in card
    assert "and 10 more, in config.json" in card
