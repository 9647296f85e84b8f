"""The `[method]` table: what a training row is, and the losses of the methods that have several.

A key that not every method reads names those that do (`methods`), one that belongs to a choice
names that (`when`); set in vain it is an error.  The defaults here are neutral (a hard label, plain
InfoNCE); what a method is known by stands in its ``presets/<method>/default.toml``.
"""

from __future__ import annotations

from dataclasses import dataclass

from seqrec.keys import Rule, above, at_least, key, one_of, within

_VIEWS = ("icsrec", "fenrec", "cl4srec", "duorec")
_FENREC = ("fenrec", "cl4srec", "duorec")
_SAMPLED = ("sasrec-sampled", "r2ns")
_HARD = {"method.contrast": one_of("hard-negative")}
_AUGMENTED = {"method.positive": one_of("augmented")}
_SHARE = Rule("at least 0 and at most 1", lambda value: 0 <= value <= 1)


@dataclass(frozen=True)
class MethodConfig:
    """What a training row is, when the method's own loss starts, and what that loss is made of."""

    name: str = key(help="the method; METHOD of the command")
    rows: str = key(
        "positions",
        help="a row is a sequence (every place predicts) or a prefix (its last place does)",
        rule=one_of("positions", "prefixes"),
        methods=("sasrec", *_SAMPLED),
    )
    warmup_epochs: int = key(
        0,
        help="epochs before the method's own loss or sampler starts",
        rule=at_least(0),
        methods=(*_FENREC, *_SAMPLED),
    )
    loss: str = key(
        "bce",
        help="against the sampled negatives",
        rule=one_of("bce", "bpr", "softmax"),
        methods=_SAMPLED,
    )
    calibration: float = key(
        0.0,
        help="gSASRec's t: how much of bce's overconfidence is taken back",
        rule=_SHARE,
        methods=_SAMPLED,
        when={"method.loss": one_of("bce")},
    )
    coarse_weight: float = key(
        0.1, help="of the loss between the two views of a row", rule=at_least(0), methods=_VIEWS
    )
    fine_weight: float = key(
        0.1,
        help="of the losses between a view and its intent cluster; 0: no clusters",
        rule=at_least(0),
        methods=_VIEWS,
    )
    clusters: int = key(256, help="intent clusters", rule=at_least(1), methods=_VIEWS)
    cluster_iterations: int = key(
        20, help="of k-means, each restart", rule=at_least(1), methods=_VIEWS
    )
    cluster_restarts: int = key(
        5,
        help="of k-means, each epoch; later epochs go on",
        rule=at_least(1),
        methods=_VIEWS,
    )
    positive: str = key(
        "last",
        help="the views: the input again beside another with the same target (the last or a "
        "random one), the input twice, or two augmented copies",
        rule=one_of("last", "random", "dropout", "augmented"),
        methods=_VIEWS,
    )
    crop: float = key(
        0.6,
        help="share of a sequence that a cropped view keeps",
        rule=_SHARE,
        methods=_VIEWS,
        when=_AUGMENTED,
    )
    mask: float = key(
        0.3,
        help="share of the items that a masked view hides",
        rule=_SHARE,
        methods=_VIEWS,
        when=_AUGMENTED,
    )
    reorder: float = key(
        0.6,
        help="share of a sequence that a reordered view shuffles",
        rule=_SHARE,
        methods=_VIEWS,
        when=_AUGMENTED,
    )
    mask_same: bool = key(
        True,
        help="leave negatives with the anchor's own target (or cluster) out",
        methods=_VIEWS,
    )
    temperature: float = key(1.0, help="of the contrastive losses", rule=above(0), methods=_VIEWS)
    gamma: float = key(
        0.0,
        help="decay of the soft labels over the next three items; 0: the next item alone",
        rule=within(0, 1),
        methods=_FENREC,
    )
    label_place: str = key(
        "own",
        help="the next items are counted from the target's own place, or (as published) from where "
        "the sequence first has the target",
        rule=one_of("own", "first"),
        methods=_FENREC,
    )
    contrast: str = key(
        "info-nce",
        help="contrastive loss after the warm-up",
        rule=one_of("info-nce", "hard-negative"),
        methods=_FENREC,
    )
    contrast_form: str = key(
        "official",
        help="of the hard-negative loss: as the published code or as the paper's equations",
        rule=one_of("official", "paper"),
        methods=_FENREC,
        when=_HARD,
    )
    focal_scale: float = key(
        8.0,
        help="a similarity s counts s tanh(s / scale); 0: plain s, without margin",
        rule=at_least(0),
        methods=_FENREC,
        when=_HARD,
    )
    margin: float = key(
        0.2,
        help="added to the tanh of a negative",
        rule=at_least(0),
        methods=_FENREC,
        when=_HARD,
    )
    mix: float = key(
        0.4,
        help="share of the anchor in a mixed hard negative",
        rule=within(0, 1),
        methods=_FENREC,
        when=_HARD,
    )
    mix_spread: float = key(
        0.0,
        help="each pair draws its share from mix -+ this",
        rule=within(0, 1),
        methods=_FENREC,
        when=_HARD,
    )
    mix_weight: float = key(
        0.1,
        help="of the mixed hard negatives; 0: none",
        rule=at_least(0),
        methods=_FENREC,
        when=_HARD,
    )
    noise: float = key(
        2.0,
        help="noise negatives, as a multiple of the batch; 0: none",
        rule=at_least(0),
        methods=_FENREC,
        when=_HARD,
    )
