"""The chat formats of published models: what stands around a question, in the student's view and the teacher's."""

from tasks import Format
from verifiers import MARKER

ASK = f"\n\nEnd your reply with {MARKER} and the final answer, like this: {MARKER} 5"
TELL = "\n\nReference, for your eyes alone: {privileged}"
HEAD = "<|start_header_id|>{}<|end_header_id|>\n\n".format
CHATS = {  # before the user's text, after it, end of a turn: families of published models, told by their special tokens
    "<|im_start|>": ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>", str),
    "<|start_header_id|>": ("<|begin_of_text|>" + HEAD("user"), "<|eot_id|>" + HEAD("assistant"), "<|eot_id|>", str),
}


def chat(tokenizer) -> Format:
    """The chat format of a published tokenizer: its folder's template, else ChatML (Qwen, SmolLM2) or Llama 3."""
    formats = [parts for name, parts in CHATS.items() if name in tokenizer.special_tokens_set]
    before, after, end, cut = tokenizer.chat or (*formats, ("", "", "", str))[0]
    if end not in tokenizer.special_tokens_set:
        known = f"the chat formats known here ({', '.join(CHATS)})"
        raise ValueError(f"the tokenizer has none of {known}, nor a template and eos_token")

    def view(question: str, privileged: str | None) -> list[str]:
        return [cut(question + (TELL.format(privileged=privileged) if privileged else "") + ASK)]

    return Format(tokenizer, before, after, end, view)
