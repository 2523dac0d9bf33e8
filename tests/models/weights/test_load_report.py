from kinescan.models.weights.load_report import LoadReport


def test_str_names_few_and_counts_many() -> None:
    report = LoadReport(
        source="clip.pt",
        layout="openai",
        loaded=("a", "b"),
        missing=("head.weight", "head.bias", "scanner.a", "scanner.b", "scanner.c"),
        unexpected=("logit_scale",),
    )
    assert str(report) == (
        "clip.pt (openai layout): 2 tensors loaded, 5 missing (head: 2, scanner: 3), "
        "1 left over (logit_scale), 0 resized"
    )
