"""Architectures that cannot become a HookedTransformer: why not, and what can be done with them instead."""

from __future__ import annotations

import re
from collections.abc import Iterable

from registry.errors import UnsupportedFamily
from registry.families.family import Family
from registry.refs import find_similar

# of SUPPORTED_ARCHITECTURES in transformer_lens 3.9's factories/architecture_adapter_factory.py, those that
# transformers has a class for; for the others, a checkpoint brings Python code of its own
_BRIDGED = """
    ASTForAudioClassification AfmoeForCausalLM ApertusForCausalLM ArceeForCausalLM
    AudioFlamingo3ForConditionalGeneration BambaForCausalLM BartForConditionalGeneration BertForMaskedLM
    BertLMHeadModel BitNetForCausalLM BlenderbotForConditionalGeneration BloomForCausalLM BloomModel
    CodeGenForCausalLM Cohere2ForCausalLM CohereForCausalLM DeepseekV2ForCausalLM DeepseekV3ForCausalLM
    DeepseekV4ForCausalLM DeiTForImageClassification DeiTModel Emu3ForConditionalGeneration Ernie4_5ForCausalLM
    Ernie4_5_MoeForCausalLM Exaone4ForCausalLM FalconForCausalLM FalconH1ForCausalLM FalconMambaForCausalLM
    FlexOlmoForCausalLM Florence2ForConditionalGeneration GPT2LMHeadModel GPTBigCodeForCausalLM GPTJForCausalLM
    GPTNeoForCausalLM GPTNeoXForCausalLM Gemma2ForCausalLM Gemma3ForCausalLM Gemma3ForConditionalGeneration
    Gemma3nForConditionalGeneration Gemma4ForCausalLM Gemma4ForConditionalGeneration
    Gemma4UnifiedForConditionalGeneration GemmaForCausalLM Glm4ForCausalLM Glm4MoeForCausalLM
    Glm4MoeLiteForCausalLM Glm4vForConditionalGeneration GlmAsrForConditionalGeneration GlmForCausalLM
    GlmMoeDsaForCausalLM GptOssForCausalLM GraniteForCausalLM GraniteMoeForCausalLM GraniteMoeHybridForCausalLM
    HrmTextForCausalLM HubertForCTC HubertModel HunYuanDenseV1ForCausalLM Idefics3ForConditionalGeneration
    Jais2ForCausalLM JambaForCausalLM JetMoeForCausalLM LEDForConditionalGeneration LagunaForCausalLM
    Lfm2ForCausalLM Lfm2MoeForCausalLM Llama4ForCausalLM Llama4ForConditionalGeneration LlamaForCausalLM
    LlavaForConditionalGeneration LlavaNextForConditionalGeneration LlavaOnevisionForConditionalGeneration
    LongT5ForConditionalGeneration M2M100ForConditionalGeneration MBartForConditionalGeneration
    MT5ForConditionalGeneration Mamba2ForCausalLM MambaForCausalLM MarianMTModel MiniMaxM2ForCausalLM
    Ministral3ForCausalLM Mistral3ForConditionalGeneration MistralForCausalLM MixtralForCausalLM
    ModernBertDecoderForCausalLM MptForCausalLM MusicFlamingoForConditionalGeneration NanoChatForCausalLM
    NemotronForCausalLM NemotronHForCausalLM OPTForCausalLM Olmo2ForCausalLM Olmo3ForCausalLM OlmoForCausalLM
    OlmoHybridForCausalLM OlmoeForCausalLM OpenAIGPTLMHeadModel PegasusForConditionalGeneration Phi3ForCausalLM
    PhiForCausalLM Qwen2AudioForConditionalGeneration Qwen2ForCausalLM Qwen2MoeForCausalLM
    Qwen2_5_VLForConditionalGeneration Qwen3ForCausalLM Qwen3MoeForCausalLM Qwen3NextForCausalLM
    Qwen3VLForConditionalGeneration Qwen3VLMoeForConditionalGeneration Qwen3_5ForCausalLM
    Qwen3_5ForConditionalGeneration Qwen3_5MoeForCausalLM Qwen3_5MoeForConditionalGeneration
    RecurrentGemmaForCausalLM RwkvForCausalLM SeedOssForCausalLM SmolLM3ForCausalLM StableLmForCausalLM
    Starcoder2ForCausalLM SwitchTransformersForConditionalGeneration T5ForConditionalGeneration
    T5Gemma2ForConditionalGeneration T5GemmaForConditionalGeneration VaultGemmaForCausalLM
    ViTForImageClassification ViTModel XGLMForCausalLM YoutuForCausalLM Zamba2ForCausalLM
"""
BRIDGED = frozenset(_BRIDGED.split())

# measured on networks with randomised norms and biases, with transformer-lens 3.9
_WRONG_BRIDGES = {
    "CohereForCausalLM": "something else: 0.8 to 14 nats off (it rotates halves of a head, and Cohere adjacent pairs)",
}
_NO_CONVERTER = "transformer-lens has no converter for it"
# what the name of an architecture class says about it, first match first; the group is the name without its head
_REASONS = (
    (
        r"(.*)(DoubleHeadsModel|For(Sequence|Token|Image|Audio|Video)Classification|ForQuestionAnswering"
        r"|ForMultipleChoice|ForNextSentencePrediction|ForCTC|ForPreTraining|ForRewardModel\w*)",
        "it has another head than a language model's",
    ),
    (r"(Bert|Roberta|Electra|Albert|DistilBert|Deberta|ModernBert)(?!Decoder)\w*", "it looks in both directions"),
    (r"(.*)ForMaskedLM", "it looks in both directions"),
    (
        r"(T5|MT5|LongT5|T5Gemma2?|UMT5|Bart|MBart|Pegasus|Marian|LED|M2M100|Blenderbot|SwitchTransformers)"
        r"(For\w+|MTModel|EncoderModel|Model)",
        "it has an encoder beside its decoder",
    ),
    (r"(.*)ForConditionalGeneration", "it reads pictures, sound or an encoder's text beside its own text"),
    (r"(\w*Mamba\d*|Rwkv|RWKV\d*|RecurrentGemma|xLSTM|HyenaDNA)For\w+", "its layers are recurrent"),
    (r"(?!.*LMHeadModel)(.*?)(Text|Decoder)?Model", "it is the body of a network without the head that gives logits"),
)


def refuse_hooked_transformer(family: Family, what: str, hint: str) -> UnsupportedFamily:
    """Make the error for `what`, which would need a HookedTransformer of a family that only a bridge can run."""
    why = _find_reason(family.class_name)[0] or _NO_CONVERTER
    return UnsupportedFamily(
        f"{what}: a {family.class_name} cannot be converted to a HookedTransformer, since {why}.",
        hint=hint,
        family=family.class_name,
    )


def refuse_architecture(class_name: str, convertible: Iterable[str], bridged: Iterable[str]) -> UnsupportedFamily:
    """Make the error for a class that is not `convertible`, and none of the `bridged`, which only bridges run."""
    known = sorted(convertible)
    why, stem = _find_reason(class_name)
    whole = [name for name in known if stem and name in (f"{stem}ForCausalLM", f"{stem}LMHeadModel")]
    similar = find_similar(class_name, [*known, *bridged])
    hints = []
    if class_name in _WRONG_BRIDGES:
        hints.append(f"transformer-lens's TransformerBridge builds it, and computes {_WRONG_BRIDGES[class_name]}.")
    elif class_name in BRIDGED:
        hints.append(
            "transformer_lens.model_bridge.TransformerBridge can run it, outside of the registry: "
            "TransformerBridge.boot_transformers(folder). Nobody has measured here whether that computes the same as "
            "transformers does, so compare their logits first."
        )
    elif why is None and similar:
        hints.append(f"Did you mean {similar[0]}?")
    if whole:
        hints.append(f"What can be registered is the language model, saved whole as {whole[0]}.")
    hints.append(f"What can be converted: {', '.join(known)}. Bridges run: {', '.join(sorted(bridged))}.")
    return UnsupportedFamily(
        f"{class_name!r} cannot be converted to a HookedTransformer: "
        f"{why or _NO_CONVERTER}, and it is none of those that a bridge runs here.",
        hint=" ".join(hints),
        family=class_name,
    )


def _find_reason(class_name: str) -> tuple[str | None, str | None]:
    """Return why this architecture is none that can be converted, and its name without the head, from the name."""
    for pattern, why in _REASONS:
        if found := re.fullmatch(pattern, class_name):
            return why, found[1]
    return None, None
