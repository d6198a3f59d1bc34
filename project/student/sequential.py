import math
import torch
from collections.abc import Mapping, Sequence, Callable
from torch import Tensor, nn, fx
from project.alignment import UnitMap
from project.moments import Moment
from project.moments.lockstep import _Run
from project.moments.patches import joint_columns
from project.student.build import Student
from project.student.fit import _solve, _blocks, joint_matrix, start_matrix, LayerFit
from project.student.layers import BlockLayer
from project.symmetry import graph_of


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m, name):
        return isinstance(m, BlockLayer) or super().is_leaf_module(m, name)


def student_graph(network):
    return fx.GraphModule(network, _Tracer().trace(network)).eval()


def affine(norm):
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return scale, norm.bias.double() - norm.running_mean.double() * scale


@torch.no_grad()
def fit_sequentially(student, sources, spec, owners, batches, *, ridge=1e-2, own=True, after=True, fold=True, compensate=False, weights=None, log=None, blockridge=None, relu=0):
    """batches: domain -> list of pictures"""
    sg = student_graph(student.network)
    graphs = [graph_of(s) for s in sources]
    runs = []  # (domain, student run, {source: run})
    for d, list_ in batches.items():
        for x in list_:
            who = [owners[d]] if own else range(len(sources))
            runs.append((d, _Run(sg, x), {s: _Run(graphs[s], x) for s in who}))
    layers = {l.node: l for l in spec.layers}
    norms = {n.name: n for n in spec.norms}
    nodes = list(sg.graph.nodes)
    total = sum(len(x) for l in batches.values() for x in l)
    fits = {}
    srcnodes = [{n.name: n for n in g.graph.nodes} for g in graphs]
    done = set()
    for node in nodes:
        if node.op == 'output':
            break
        for d, r, rs in runs:
            for s, q in rs.items():
                q.step(srcnodes[s][node.name])
        layer = layers.get(node.name)
        if layer is not None:
            users = list(node.users)
            norm = next((u for u in users if u.op == 'call_module' and str(u.target) in norms), None)
            norm = norm if after else None
            outs, ins = student.maps[layer.outputs], student.maps[layer.inputs]
            mods = [s.get_submodule(layer.name) for s in sources]
            mats = joint_matrix(layer, mods)
            affs = None
            extra = None
            if norm is not None:
                affs = [affine(s.get_submodule(str(norm.target))) for s in sources]
                mats = [torch.cat([m[:, :m.shape[1]-layer.bias]*a[:, None], ((m[:, -1] if layer.bias else 0)*a + b)[:, None]], 1) for m, (a, b) in zip(mats, affs)]
                if compensate:
                    nu = list(norm.users)
                    if len(nu) == 1 and len(nu[0].all_input_nodes) == 2 and len([1 for _ in nu]) == 1:
                        other = next(a for a in nu[0].all_input_nodes if a is not norm)
                        if other.name in done:
                            extra = other
            const = layer.bias or norm is not None
            import dataclasses
            L = dataclasses.replace(layer, bias=const)
            start = start_matrix(L, mats, outs, ins).contiguous()
            D = start.shape[1]
            G = Moment(D); C = torch.zeros(outs.units, D, dtype=torch.float64); P = 0.0; n = 0
            module = sg.get_submodule(layer.name)
            rectified = None; store = []
            if relu and norm is not None:
                u = list(norm.users)
                if any(isinstance(sg.get_submodule(str(k.target)), nn.ReLU) for k in u if k.op == 'call_module'):
                    rectified = 'direct'
                elif extra is not None:
                    rectified = 'sum'
            proto = mods[0]
            shape_proto = proto
            for d, r, rs in runs:
                x = r.first_argument(node)
                m = outs.own(owners[d]) if own else outs.mean
                t = 0
                y0 = None
                for s, q in rs.items():
                    y = q.env[srcnodes[s][node.name]]
                    if affs is not None:
                        a, b = affs[s]
                        sh = (1, -1) + (1,)*(y.dim()-2)
                        y = y*a.float().view(sh)+b.float().view(sh)
                    if extra is not None:
                        y = y + q.env[srcnodes[s][extra.name]]
                    rows = outs.present[:, s].nonzero()[:, 0]
                    contrib = torch.zeros(y.shape[0], outs.units, *y.shape[2:])
                    contrib[:, rows] = y[:, outs.members[rows, s]]
                    t = t + contrib * m[:, s].float().view((1, -1)+(1,)*(y.dim()-2))
                # rows without owner
                if extra is not None:
                    t = t - r.env[extra]
                # own: rows that lack the owner get no target from this domain -> mask rows
                tt = t.transpose(0, 1).flatten(1)
                if rectified is not None:
                    ex = r.env[extra].transpose(0, 1).flatten(1) if extra is not None else None
                    store.append((d, x, tt, ex))
                lay = _Proto(proto, ins.units)
                pos = 0
                for cols in joint_columns([x], [lay], constant=const):
                    G.update(cols)
                    k = cols.shape[1]
                    C += (tt[:, pos:pos+k] @ cols.mT)
                    pos += k
                P += float(tt.square().sum()); n += tt.shape[1]
            G = G.mean(); C /= n; P /= n
            forward = start @ G
            energy = P - float(((2*C-forward)*start).sum())
            gap = C - forward
            lam = ridge if blockridge is None else blockridge(layer, n, D)
            shift = lam*float(G.diagonal()[:ins.units*layer.taps].mean())
            delta = torch.zeros_like(start)
            for rows, cols in _blocks(L, outs, ins):
                mtx = G if len(cols) == len(G) else G[cols][:, cols]
                sol, cond, fell = _solve(mtx, gap[rows][:, cols], shift)
                delta[rows] = delta[rows].index_copy(1, cols, sol)
            if rectified is not None:
                for it in range(relu):
                    W = start+delta
                    C2 = torch.zeros_like(C)
                    Wf = W.float()
                    for d, x, tt, ex in store:
                        pos = 0
                        for cols in joint_columns([x], [lay], constant=const):
                            k = cols.shape[1]
                            pred = Wf @ cols
                            tgt = tt[:, pos:pos+k]
                            if ex is None:
                                tgt = torch.where(tgt < 0, pred.clamp_max(0), tgt)
                            else:
                                e = ex[:, pos:pos+k]
                                tgt = torch.where(tgt+e < 0, (pred+e).clamp_max(0)-e, tgt)
                            C2 += tgt @ cols.mT
                            pos += k
                    gap = C2/n - forward
                    delta = torch.zeros_like(start)
                    for rows, cols in _blocks(L, outs, ins):
                        mtx = G if len(cols) == len(G) else G[cols][:, cols]
                        sol, cond, fell = _solve(mtx, gap[rows][:, cols], shift)
                        delta[rows] = delta[rows].index_copy(1, cols, sol)
            left = energy-float((delta*gap).sum())-shift*float(delta.square().sum())
            W = start+delta
            fits[layer.name] = dict(before=energy/P, after=left/P)
            if norm is not None:
                w, c = W[:, :-1], W[:, -1]
                from project.student.layers import load_matrix
                load_matrix(module, w, torch.zeros(len(w)) if layer.bias else None)
                bn = sg.get_submodule(str(norm.target))
                mean = w @ G[:-1, -1]
                second = ((w @ G[:-1, :-1])*w).sum(1)
                var = (second-mean**2).clamp_min(0)
                bn.running_mean.copy_(mean); bn.running_var.copy_(var)
                bn.weight.copy_((var+bn.eps).sqrt()); bn.bias.copy_(mean+c)
            else:
                student.load_layer(layer.name, W)
        elif node.op == 'call_module' and str(node.target) in norms and not after:
            bn = sg.get_submodule(str(node.target))
            vals = [r.first_argument(node) for _, r, _ in runs]
            cnt = sum(v[:, 0].numel() for v in vals)
            mean = sum(v.double().sum((0, 2, 3)) for v in vals)/cnt
            var = sum((v.double()**2).sum((0, 2, 3)) for v in vals)/cnt-mean**2
            bn.running_mean.copy_(mean); bn.running_var.copy_(var)
        for d, r, rs in runs:
            r.step(node)
        done.add(node.name)
        for d, r, rs in runs:
            r.release(node)
            for s, q in rs.items():
                q.release(srcnodes[s][node.name])
    return fits


def _Proto(layer, units):
    from project.student.layers import resized
    wide = 1
    if isinstance(layer, nn.Linear):
        return nn.Linear(units, layer.out_features)
    with torch.device("meta"):
        return resized(layer, units, 1)
