"""Outcome models of a made-up hospital group, as their own repository would have them. Nothing of whenwhy in here."""

import torch
import torch.nn as nn
import torch.nn.functional as F  # noqa: N812
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class LinearGRU(nn.Module):
    def __init__(self, n_codes, hidden=16):
        super().__init__()
        self.embed = nn.Linear(n_codes, hidden)
        self.gru = nn.GRU(hidden, hidden, batch_first=True)
        self.dropout = nn.Dropout(0.3)
        self.out = nn.Linear(hidden, 1)

    def forward(self, x):
        h, _ = self.gru(self.dropout(torch.tanh(self.embed(x))))
        return self.out(h[:, -1])


class CutOff(LinearGRU):
    """Its answer has no gradient."""

    def forward(self, x):
        return super().forward(x).detach()


class DenseGRU(nn.Module):
    """The GRU reads the multi-hot vectors itself; packed, two levels."""

    def __init__(self, n_codes, hidden=16):
        super().__init__()
        self.rnn = nn.GRU(n_codes, hidden, num_layers=2, batch_first=True, dropout=0.2)
        self.head = nn.Linear(hidden, 1)

    def forward(self, x, lengths):
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        _, h = self.rnn(packed)
        return self.head(h[-1]).squeeze(-1)


class BiLSTM(nn.Module):
    """Steps first, as torch has it by default; two classes."""

    def __init__(self, n_codes, hidden=8):
        super().__init__()
        self.lstm = nn.LSTM(n_codes, hidden, bidirectional=True)
        self.fc = nn.Linear(2 * hidden, 2)

    def forward(self, x):
        out, _ = self.lstm(x)
        return self.fc(out.mean(0))


class ThreeClasses(nn.Module):
    """A logit for each of some classes."""

    def __init__(self, n_codes, hidden=8, classes=3):
        super().__init__()
        self.embed = nn.Linear(n_codes, hidden)
        self.gru = nn.GRU(hidden, hidden, batch_first=True)
        self.out = nn.Linear(hidden, classes)

    def forward(self, x):
        h, _ = self.gru(self.embed(x))
        return self.out(h[:, -1])


class ThreeProbabilities(ThreeClasses):
    def forward(self, x):
        return torch.softmax(super().forward(x), dim=-1)


class ThreeEveryStep(ThreeClasses):
    """The logits at every step, steps first."""

    def forward(self, x):
        h, _ = self.gru(self.embed(x))
        return self.out(h).transpose(0, 1)


class ElmanEveryStep(nn.Module):
    """A logit a step."""

    def __init__(self, n_codes, hidden=8):
        super().__init__()
        self.rnn = nn.RNN(n_codes, hidden, batch_first=True, nonlinearity="relu")
        self.fc = nn.Linear(hidden, 1)

    def forward(self, x, seq_len=None):
        out, _ = self.rnn(x)
        return {"hidden": out, "logits": self.fc(out)}


class EmbeddingSum(nn.Module):
    """Padded indexes [B, T, K], summed within a visit."""

    def __init__(self, n_codes, dim=12):
        super().__init__()
        self.emb = nn.Embedding(n_codes, dim)
        self.gru = nn.GRU(dim, dim, batch_first=True)
        self.fc = nn.Linear(dim, 1)

    def forward(self, codes, lengths):
        present = (codes != 0).unsqueeze(-1).float()
        visits = (self.emb(codes) * present).sum(dim=2)
        out, _ = self.gru(visits)
        return self.fc(out[torch.arange(len(out)), lengths - 1])


class EmbeddingMean(nn.Module):
    """A mean of a visit's codes."""

    def __init__(self, n_codes, dim=12):
        super().__init__()
        self.bag = nn.EmbeddingBag(n_codes, dim, mode="mean", padding_idx=0)
        self.gru = nn.GRU(dim, dim, batch_first=True)
        self.fc = nn.Linear(dim, 1)

    def forward(self, codes):
        b, t, k = codes.shape
        visits = self.bag(codes.reshape(b * t, k)).view(b, t, -1)
        return self.fc(self.gru(visits)[0][:, -1])


class Tokens(nn.Module):
    """One index a step [B, T]."""

    def __init__(self, n_codes, dim=12):
        super().__init__()
        self.emb = nn.Embedding(n_codes, dim, padding_idx=0)
        self.lstm = nn.LSTM(dim, dim, batch_first=True)
        self.fc = nn.Linear(dim, 1)

    def forward(self, tokens):
        return self.fc(self.lstm(self.emb(tokens))[1][0][-1])


class MaskedTransformer(nn.Module):
    def __init__(self, n_codes, dim=16):
        super().__init__()
        self.proj = nn.Linear(n_codes, dim)
        layer = nn.TransformerEncoderLayer(dim, nhead=2, dim_feedforward=32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers=1, enable_nested_tensor=False)
        self.fc = nn.Linear(dim, 1)

    def forward(self, x, mask):
        h = self.encoder(self.proj(x), src_key_padding_mask=~mask)
        m = mask.unsqueeze(-1)
        return self.fc((h * m).sum(1) / m.sum(1))


class OddMask(nn.Module):
    """`mask` is true where there is nothing, whatever its name says."""

    def __init__(self, n_codes, dim=8):
        super().__init__()
        self.proj = nn.Linear(n_codes, dim)
        self.fc = nn.Linear(dim, 1)

    def forward(self, x, mask):
        h = torch.tanh(self.proj(x)).masked_fill(mask.unsqueeze(-1), 0.0)
        return self.fc(h.sum(1)).squeeze()


class Convolution(nn.Module):
    def __init__(self, n_codes, dim=8):
        super().__init__()
        self.conv = nn.Conv1d(n_codes, dim, kernel_size=1)
        self.fc = nn.Linear(dim, 1)

    def forward(self, x):
        return self.fc(F.relu(self.conv(x.transpose(1, 2))).amax(-1))


class TwoReaders(nn.Module):
    """Attention and values each have a first layer of their own."""

    def __init__(self, n_codes, dim=8):
        super().__init__()
        self.key, self.value = nn.Linear(n_codes, 1, bias=False), nn.Linear(n_codes, dim)
        self.fc = nn.Linear(dim, 1)

    def forward(self, x):
        weight = torch.softmax(self.key(x), dim=1)
        return self.fc(torch.tanh((weight * self.value(x)).sum(1)))


class Leaky(nn.Module):
    """How much is recorded goes past the first layer: it must be refused."""

    def __init__(self, n_codes, hidden=16):
        super().__init__()
        self.embed = nn.Linear(n_codes, hidden)
        self.gru = nn.GRU(hidden, hidden, batch_first=True)
        self.out = nn.Linear(hidden + 1, 1)

    def forward(self, x):
        h, _ = self.gru(self.embed(x))
        return self.out(torch.cat([h[:, -1], x.sum((1, 2)).unsqueeze(1)], dim=1))


class Gated(nn.Module):
    """One code opens a gate past the first layer: it must be refused."""

    def __init__(self, n_codes, hidden=16):
        super().__init__()
        self.embed = nn.Linear(n_codes, hidden)
        self.out = nn.Linear(hidden, 1)

    def forward(self, x):
        gate = (x[:, :, 3].amax(1, keepdim=True) > 0).float()
        return self.out(torch.tanh(self.embed(x)).sum(1)) * (1 + gate)


class Neighbours(nn.Module):
    """Patients of a batch see each other: it must be refused."""

    def __init__(self, n_codes, hidden=8):
        super().__init__()
        self.embed, self.out = nn.Linear(n_codes, hidden), nn.Linear(hidden, 1)

    def forward(self, x):
        h = torch.tanh(self.embed(x)).sum(1)
        return self.out(h - h.mean(0))


class Probabilities(LinearGRU):
    def forward(self, x):
        return torch.sigmoid(super().forward(x))


class ManyLabels(ThreeClasses):
    """Yes or no of each of three labels, which do not exclude each other."""

    def forward(self, x):
        return torch.sigmoid(super().forward(x))


class NoPatients(ThreeClasses):
    """An answer that has no patients."""

    def forward(self, x):
        return super().forward(x).mean(0)[:2]


class Needs(LinearGRU):
    def forward(self, x, ages):
        return super().forward(x) + ages


class WithTimes(nn.Module):
    """Packs, pads again, and reads the last true step."""

    def __init__(self, n_codes, hidden=8):
        super().__init__()
        self.e = nn.Linear(n_codes, hidden, bias=False)
        self.g = nn.LSTM(hidden, hidden, batch_first=True, bidirectional=True)
        self.o = nn.Linear(2 * hidden, 1)

    def forward(self, x, lens):
        p = pack_padded_sequence(self.e(x), lens, batch_first=True, enforce_sorted=False)
        h, _ = pad_packed_sequence(self.g(p)[0], batch_first=True)
        return self.o(h[torch.arange(len(h)), lens - 1]), h


def make(n_codes, hidden=16):
    return LinearGRU(n_codes, hidden)
