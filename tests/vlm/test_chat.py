import pytest
import torch

from kinescan.errors import ConfigError
from kinescan.vlm import PixelSettings, open_stream
from kinescan.vlm.chat import Chat
from kinescan.vlm.families import family_class

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}[[VIDEO]]{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PIXELS = PixelSettings(min_pixels=64, max_pixels=10_000)


def chat(vlm, name, processor, **options):
    model = vlm(name)
    return Chat(family_class(model)(model), processor, **options)


def whole_prompt(chat, num_patches, question, tokenizer):
    ids = []
    for patch in range(num_patches):
        ids += chat.before_patch(2 * patch + 1, 2.0 * patch + 0.5, "between" if patch else "first")
        ids += tokenizer.encode("#", add_special_tokens=False) + chat.after_patch()
    return tokenizer.decode(ids + chat.question(question, behind="video"))


EXPECTED = {
    "qwen2_5_vl": (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>##<|vision_end|>"
        "Why?<|im_end|>\n<|im_start|>assistant\n"
    ),
    "qwen3_vl": (
        "<|im_start|>user\n<0.5 seconds><|vision_start|>#<|vision_end|><2.5 seconds><|vision_start|>#<|vision_end|>"
        "Why?<|im_end|>\n<|im_start|>assistant\n"
    ),
    "internvl": (
        "<|im_start|>user\nFrame1: <img>#</img>\nFrame3: <img>#</img>\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    ),
    "llava_onevision": "<|im_start|>user ##\nWhy?<|im_end|><|im_start|>assistant\n",
}


def test_prompt_of_each_family(family_name, vlm, tokenizer):
    made = whole_prompt(chat(vlm, family_name, tokenizer()), 2, "Why?", tokenizer())
    assert made == EXPECTED[family_name]


def test_chat_template_goes_first(family_name, vlm, tokenizer):
    kind = family_class(vlm(family_name))
    templated = tokenizer(TEMPLATE.replace("[[VIDEO]]", kind.prompt.video_token))
    made = whole_prompt(chat(vlm, family_name, templated), 2, "Why?", templated)
    between = {
        "qwen2_5_vl": "##",
        "llava_onevision": "##",
        "internvl": "Frame1: <img>#</img>\nFrame3: <img>#</img>",
        "qwen3_vl": "<0.5 seconds><|vision_start|>#<|vision_end|><2.5 seconds><|vision_start|>#<|vision_end|>",
    }
    assert made == f"<|im_start|>user\n{between[family_name]}Why?<|im_end|>\n<|im_start|>assistant\n"
    turns = chat(vlm, family_name, templated)
    assert turns.format.next_turn == "<|im_end|>\n<|im_start|>user\n"
    assert turns.format.next_video == "<|im_end|>\n<|im_start|>user\n"


def test_qwen3_outer_pair_is_kept_on_request_alone(vlm, tokenizer):
    kind, model = family_class(vlm("qwen3_vl")), vlm("qwen3_vl")
    templated = tokenizer(TEMPLATE.replace("[[VIDEO]]", "<|vision_start|><|video_pad|><|vision_end|>"))
    for processor in (templated, tokenizer()):
        compatible = Chat(kind(model, hf_compat=True), processor).format
        own = Chat(kind(model), processor).format
        assert (own.opening, own.closing) == ("<|im_start|>user\n", "")
        assert (compatible.opening, compatible.closing) == ("<|im_start|>user\n<|vision_start|>", "<|vision_end|>")
        assert compatible.next_video == own.next_video + "<|vision_start|>"


@pytest.mark.parametrize("template", ["no video in it", "{{ messages[0]['content'] + 1 }}"])
def test_template_without_video_gives_way_to_the_own_prompt(template, vlm, tokenizer):
    made = chat(vlm, "internvl", tokenizer(template))
    assert made.format == made_default(vlm)


def made_default(vlm):
    return family_class(vlm("internvl")).prompt


def test_opening_replaces_the_format(vlm, tokenizer):
    made = chat(vlm, "internvl", tokenizer(), opening="Watch:")
    assert whole_prompt(made, 1, "Why?", tokenizer()).startswith("Watch:Frame1: <img>")


def test_question_behind_an_answer_is_another_turn(vlm, tokenizer):
    made = chat(vlm, "qwen2_5_vl", tokenizer())
    ids = made.question("And then?", behind="answer")
    expected = "<|im_end|>\n<|im_start|>user\nAnd then?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer().decode(ids) == expected
    again = made.before_patch(9, 8.0, "next_video")
    assert tokenizer().decode(again) == "<|im_end|>\n<|im_start|>user\n<|vision_start|>"


def test_processor_lends_its_tokenizer(vlm, tokenizer):
    class Processor:
        pass

    processor = Processor()
    processor.tokenizer = tokenizer()
    assert chat(vlm, "internvl", processor).tokenizer is tokenizer()


@pytest.mark.bad_input
def test_empty_words_are_refused(vlm, tokenizer):
    with pytest.raises(ConfigError, match="question"):
        chat(vlm, "internvl", tokenizer()).question("  ", behind="video")


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "question", [None, 5, b"bytes", [1.5], [-1], [320], [True], ["a"], torch.tensor([0.5]), []], ids=repr
)
def test_questions_of_another_kind_are_refused(question, family_name, vlm, video, tokenizer):
    with open_stream(vlm(family_name), tokenizer(), pixels=PIXELS) as stream:
        stream.push(video(2))
        with pytest.raises(ConfigError):
            stream.ask(question)


def test_a_question_with_bytes_that_are_no_text_is_asked(vlm, video, tokenizer):
    with open_stream(vlm("internvl"), tokenizer(), pixels=PIXELS) as stream:
        stream.push(video(2))
        assert stream.ask("caf\udce9?", max_new_tokens=1).token_ids == stream.ask("caf??", max_new_tokens=1).token_ids


@pytest.mark.bad_input
@pytest.mark.parametrize("processor", ["tokenizer", 5, {}, object()], ids=["text", "number", "dict", "object"])
def test_other_processors_are_refused_before_frames_are_pushed(processor, vlm):
    with pytest.raises(ConfigError, match="processor"):
        open_stream(vlm("internvl"), processor, pixels=PIXELS)


@pytest.mark.bad_input
@pytest.mark.parametrize("options", [{"opening": 5}, {"opening": ["a"]}, {"pixels": {}}, {"pixels": "x"}], ids=repr)
def test_texts_and_pixels_of_another_kind_are_refused(options, vlm, tokenizer):
    with pytest.raises(ConfigError, match=next(iter(options))):
        open_stream(vlm("internvl"), tokenizer(), **options)


def test_words_in_words_out(family_name, vlm, video, tokenizer):
    """The whole way with text: equal to the plain forward over the same prompt written out."""
    model, frames = vlm(family_name), video(4)
    with open_stream(model, tokenizer(), budget=None, hf_compat=True, pixels=PIXELS) as stream:
        stream.push(frames)
        tokens = list(stream.ask_stepwise("Why so?", max_new_tokens=6))
        answer = stream.ask("Why so?", max_new_tokens=6)
    assert "".join(token.text for token in tokens) in answer.text or answer.text.endswith("\ufffd")
    stops = stream.family.stop_ids()
    assert answer.text == tokenizer().decode(
        [token.token_id for token in tokens if token.token_id not in stops], skip_special_tokens=True
    )
    prompt = EXPECTED[family_name].replace("Why?", "Why so?")
    if family_name == "qwen3_vl":  # the outer pair that transformers 5 leaves in
        prompt = prompt.replace("<0.5 ", "<|vision_start|><0.5 ").replace("Why", "<|vision_end|>Why")
    if family_name == "internvl":
        prompt = "<|im_start|>user\n" + "\n".join(f"Frame{n}: <img>{'<image>' * 4}</img>" for n in (1, 2, 3, 4))
        prompt += "\nWhy so?<|im_end|>\n<|im_start|>assistant\n"
        inputs = {"pixel_values": stream.family.prepare(frames)}
    elif family_name == "llava_onevision":
        prompt = prompt.replace("##", "<|video_pad|>" * (9 * 4 + 1))
        inputs = {"pixel_values_videos": stream.family.prepare(frames)[None]}
    else:
        pads = "<|video_pad|>" * 6
        prompt = prompt.replace("##", pads * 2).replace("#", pads)
        inputs = {
            "pixel_values_videos": torch.cat([stream.family.prepare(part) for part in frames.split(2)]),
            "video_grid_thw": torch.tensor([[2, 4, 6]]),
        }
        inputs |= {"second_per_grid_ts": [2.0]} if family_name == "qwen2_5_vl" else {}
    ids = torch.tensor([tokenizer().encode(prompt, add_special_tokens=False)])
    if family_name.startswith("qwen"):
        inputs["mm_token_type_ids"] = (ids == 302).int() * 2
    with torch.no_grad():
        expected = model(input_ids=ids, **inputs).logits[0, -1]
    torch.testing.assert_close(tokens[0].logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("name", "hf_compat"), [("qwen2_5_vl", False), ("qwen3_vl", True), ("internvl", False)])
def test_an_opening_keeps_the_marker_of_the_video(name, hf_compat, vlm, tokenizer):
    with open_stream(vlm(name), tokenizer(), opening="You are a guard.", hf_compat=hf_compat) as stream:
        text = tokenizer().decode(stream.chat.before_patch(1, 0.0, "first"))
        assert text.startswith("You are a guard.")
        marker = stream.family.prompt.video_start
        assert text.removeprefix("You are a guard.").startswith(marker)
    if marker:
        with open_stream(vlm(name), tokenizer(), opening="Guard. " + marker, hf_compat=hf_compat) as stream:
            assert tokenizer().decode(stream.chat.before_patch(1, 0.0, "first")).count(marker) == text.count(marker)
