"""The named families: which parameter name has which role."""

import re
from dataclasses import dataclass

from protos.wiring import Parameter
from trainer_worker.wiring.families.roles import Role

_HEADS = {
    r"(score|classifier|qa_outputs|head|out_proj|dense)\.weight": Role.LINEAR,
    r"(classifier|qa_outputs|head|out_proj|dense)\.bias": Role.BIAS,
}


@dataclass(frozen=True)
class Family:
    """A family of transformers.

    Args:
        name: as the report shows it.
        roles: role by the end of a parameter's name, a regular expression; the first that fits counts.
        turned: matrices are stored (in, out).
    """

    name: str
    roles: dict[str, Role]
    turned: bool = False

    def assign(self, parameters: tuple[Parameter, ...]) -> dict[str, Role] | None:
        """The role of every parameter, or None if any has no role here (adapters, another variant)."""
        roles = {}
        for parameter in parameters:
            role = next((role for end, role in self.roles.items() if re.search(rf"(^|\.){end}$", parameter.name)), None)
            if parameter.shape and (role is None or not _fits(parameter, role)):
                return None
            if role is not None:
                roles[parameter.name] = role
        return roles


_RANKS = {Role.WORD: (2, 3), Role.POSITION: (2, 3), Role.TOKEN_TYPE: (2,), Role.PATCH: (4,)}
_VECTORS = {role for role in Role if role.name.endswith(("GAIN", "BIAS"))}


def _fits(parameter: Parameter, role: Role) -> bool:
    ranks = (1,) if role in _VECTORS else _RANKS.get(role, (2,))
    return len(parameter.shape) in ranks and parameter.size > 0


_GPT = {
    r"wte\.weight": Role.WORD,
    r"wpe\.weight": Role.POSITION,
    r"ln_(1|2|f)\.weight": Role.GAIN,
    r"ln_(1|2|f)\.bias": Role.BIAS,
    r"attn\.c_attn\.weight": Role.FUSED,
    r"attn\.c_attn\.bias": Role.FUSED_BIAS,
    r"attn\.c_proj\.weight": Role.ATTENTION_OUT,
    r"mlp\.c_fc\.weight": Role.MLP_IN,
    r"mlp\.c_proj\.weight": Role.MLP_OUT,
    r"(c_fc|c_proj)\.bias": Role.BIAS,
}

GPT2 = Family("gpt2", {**_GPT, r"(lm_head|score)\.weight": Role.UNTURNED_HEAD}, turned=True)
NANOGPT = Family("nanogpt", {**_GPT, r"lm_head\.weight": Role.LINEAR})

LLAMA = Family(
    "llama",
    {
        r"embed_tokens\.weight": Role.WORD,
        r"self_attn\.q_proj\.weight": Role.QUERY,
        r"self_attn\.k_proj\.weight": Role.KEY,
        r"self_attn\.v_proj\.weight": Role.VALUE,
        r"self_attn\.q_proj\.bias": Role.QUERY_BIAS,
        r"self_attn\.k_proj\.bias": Role.KEY_BIAS,
        r"self_attn\.v_proj\.bias": Role.VALUE_BIAS,
        r"self_attn\.q_norm\.weight": Role.QUERY_GAIN,
        r"self_attn\.k_norm\.weight": Role.KEY_GAIN,
        r"self_attn\.o_proj\.weight": Role.ATTENTION_OUT,
        r"mlp\.gate_proj\.weight": Role.MLP_IN,
        r"mlp\.up_proj\.weight": Role.MLP_UP,
        r"mlp\.down_proj\.weight": Role.MLP_OUT,
        r"(o_proj|gate_proj|up_proj|down_proj)\.bias": Role.BIAS,
        # The two norms of a layer follow its MLP in parameter order, and the published graph reads them there.
        r"(input_layernorm|post_attention_layernorm|norm)\.weight": Role.GAIN,
        r"lm_head\.weight": Role.LINEAR,
        **_HEADS,
    },
)

BERT = Family(
    "bert",
    {
        r"word_embeddings\.weight": Role.WORD,
        r"position_embeddings\.weight": Role.POSITION,
        r"token_type_embeddings\.weight": Role.TOKEN_TYPE,
        r"(LayerNorm|layer_norm)\.weight": Role.GAIN,
        r"(LayerNorm|layer_norm)\.bias": Role.BIAS,
        r"attention\.self\.query\.weight": Role.QUERY,
        r"attention\.self\.key\.weight": Role.KEY,
        r"attention\.self\.value\.weight": Role.VALUE,
        r"attention\.self\.query\.bias": Role.QUERY_BIAS,
        r"attention\.self\.key\.bias": Role.KEY_BIAS,
        r"attention\.self\.value\.bias": Role.VALUE_BIAS,
        r"attention\.output\.dense\.weight": Role.ATTENTION_OUT,
        r"intermediate\.dense\.weight": Role.MLP_IN,
        r"output\.dense\.weight": Role.MLP_OUT,
        r"(cls\.predictions|lm_head)\.bias": Role.WORD_BIAS,
        r"(decoder|seq_relationship)\.weight": Role.LINEAR,
        r"(decoder|seq_relationship)\.bias": Role.BIAS,
        **_HEADS,
    },
)

TORCHVISION_VIT = Family(
    "vit",
    {
        r"class_token": Role.WORD,
        r"conv_proj\.weight": Role.PATCH,
        r"conv_proj\.bias": Role.BIAS,
        r"pos_embedding": Role.POSITION,
        r"(ln_1|ln_2|ln)\.weight": Role.GAIN,
        r"(ln_1|ln_2|ln)\.bias": Role.BIAS,
        r"self_attention\.in_proj_weight": Role.FUSED,
        r"self_attention\.in_proj_bias": Role.FUSED_BIAS,
        r"self_attention\.out_proj\.weight": Role.ATTENTION_OUT,
        r"mlp\.(0|linear_1)\.weight": Role.MLP_IN,
        r"mlp\.(3|linear_2)\.weight": Role.MLP_OUT,
        r"mlp\.(0|3|linear_1|linear_2)\.bias": Role.BIAS,
        **_HEADS,
    },
)

HUGGING_FACE_VIT = Family(
    "vit",
    {
        r"cls_token": Role.WORD,
        r"position_embeddings": Role.POSITION,
        r"patch_embeddings\.projection\.weight": Role.PATCH,
        r"projection\.bias": Role.BIAS,
        r"layernorm_before\.weight": Role.BEFORE_GAIN,
        r"layernorm_before\.bias": Role.BEFORE_BIAS,
        r"(layernorm_after|layernorm)\.weight": Role.GAIN,
        r"(layernorm_after|layernorm)\.bias": Role.BIAS,
        r"(q_proj|query)\.weight": Role.QUERY,
        r"(k_proj|key)\.weight": Role.KEY,
        r"(v_proj|value)\.weight": Role.VALUE,
        r"(q_proj|query)\.bias": Role.QUERY_BIAS,
        r"(k_proj|key)\.bias": Role.KEY_BIAS,
        r"(v_proj|value)\.bias": Role.VALUE_BIAS,
        r"attention\.(o_proj|output\.dense)\.weight": Role.ATTENTION_OUT,
        r"(mlp\.fc1|intermediate\.dense)\.weight": Role.MLP_IN,
        r"(mlp\.fc2|output\.dense)\.weight": Role.MLP_OUT,
        r"(o_proj|fc1|fc2)\.bias": Role.BIAS,
        **_HEADS,
    },
)
