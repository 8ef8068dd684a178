r"""The streaming engine: NiNo's forecast exactly, at a fifth of its arithmetic, with nothing of hidden size stored over edges.

Notation as in `trainer_worker.metatrain.model`: H hidden channels, c snapshots, N neurons, E edges; an edge from neuron s to
neuron t carries its standardised weights :math:`z` (slots x c numbers) and a type.

**Folding** (`fold.py`). Linear maps that meet without an activation between them are multiplied out once. An edge's state
is then always :math:`a^i = R_i h^i + r_i`, where :math:`h^0 = z` (5 numbers, 45 for a 3 x 3 kernel) and

.. math:: h^{i+1} = \sigma(E_i h^i + e_i[type] + S_i x^{i+1}_s + T_i x^{i+1}_t)

**Messages.** With :math:`A = W_t x + b` and :math:`B = W_s x` once a neuron, :math:`m = (M h + m_0) \odot (A_t + B_s) + (Z
h + z_0)`. A sum commutes with linear maps, so of its three parts only one needs work for each edge:

.. math::
    \sum_s m = A_t \odot \Big(M \sum_s h + m_0 n\Big) + \Big(Z \sum_s h + z_0 n\Big) + \sum_s (M h) \odot B_s + m_0 \odot \sum_s B_s

For the first convolution :math:`h = z`, and even that part is :math:`\sum_c M_c \odot (z_c B)`: c plain products of a
weight matrix with B.

**Recomputing.** A forecast walks all edges once for each convolution that matters (the last one does not, unless it updates
edges) and once more for the forecasts. Each walk computes h again from z; no walk leaves anything over edges but the
forecasts.

**Cost of an edge**, for the published model (H = 128, c = 5, 3 layers): 3 products of H x H (one in the second walk, two in
the third), three times 5 x H, H a horizon, and 4 activations of H: 52k multiply-adds, where the model as written takes 272k.
Of a neuron: some twenty products of H x H. Of memory: about eight times N x H, two tiles a thread, and the forecasts.

**Order.** Edges are cut into units by the wiring alone (`plan.py`). Units are computed by single-threaded workers and added up in a
fixed order, so that a forecast on the CPU is the same bit for bit for any number of threads.
"""

from nowcast_server.nino.engine.engine import StreamingEngine
from nowcast_server.nino.engine.workers import CPU_SIZES, DEVICE_SIZES, Sizes

__all__ = ["CPU_SIZES", "DEVICE_SIZES", "Sizes", "StreamingEngine"]
