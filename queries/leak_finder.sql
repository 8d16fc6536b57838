-- Which features may be leaks or shortcuts: they spike before the prediction, differ by site, or count for being measured.
--
-- One row a feature, those under most suspicions first, then by mean absolute contribution per prediction (share_of_total is
-- its share of all features'). spike: how much larger the mean absolute contribution of an event is in the last bin before
-- the prediction than earlier, over the same of all features together (a model may favour what is recent); what is recorded
-- because of the outcome spikes, infinitely so where it is never recorded earlier. measured_share: of a feature with numbers, the part
-- of its mean square over ranges that their common mean explains: near 1, that it was measured matters and not what was
-- found. subgroup_q: the false discovery rate of its difference between sites, or other subgroups (subgroup_disagreement).
-- A suspicion is no proof: ask of each how its record comes about. Of what may be shown.
-- Arguments: subgroups, the name of a kind of strata (site), or null for none; spike and measured, from which on there is a suspicion;
-- false_discovery_rate, up to which; split, class, run, top, min_patients.
-- Example: whenwhy query STORE leak_finder subgroups=sex top=5
create or replace temp macro leak_finder(
    subgroups := null, spike := 3, measured := 0.9, false_discovery_rate := 0.05, split := 'held_out', class := 'all',
    run := null, top := 20, min_patients := 11
) as table
with known as (
    select c.* from cells c
    where c.split = split and c.class = class and c.stratum = 'all' and c.time_axis = 'before_prediction'
        and c.run_id = coalesce(run::varchar, (select min(run_id) from runs))
),
times as (
    select k.code, sum(k.sum_abs) filter (k.time_bin = 0) / sum(k.n_events) filter (k.time_bin = 0) as late,
        sum(k.sum_abs) filter (k.time_bin > 0) / sum(k.n_events) filter (k.time_bin > 0) as early
    from known k where k.level = 'code' and k.time_bin is not null group by rollup (k.code)
),
spikes as (
    -- Where nothing was recorded earlier (and rows tell that nothing was), what is there is a spike.
    select t.code, case when t.early > 0 then t.late / t.early when t.late > 0 and has_rows() then 'infinity'::double end as spike
    from times t
),
means as (
    select k.code, k.n_events, k.sum / k.n_events as mean
    from known k join feature_values f using (run_id, feature_value_id)
    where k.level = 'value' and k.time_bin is null and f.bin is not null
),
ranges as (
    select m.code, sum(m.n_events * m.mean) / sum(m.n_events) as mean, sum(m.n_events * m.mean * m.mean) / sum(m.n_events) as square
    from means m group by m.code having count(*) > 1
),
told as (
    select e.code, e.description, e.n_patients, e.mean_abs_per_prediction,
        e.mean_abs_per_prediction / nullif(sum(e.mean_abs_per_prediction) over (), 0) as share_of_total,
        t.spike / nullif((select a.spike from spikes a where a.code is null), 0) as spike, r.mean * r.mean / nullif(r.square, 0) as measured_share,
        d.difference as subgroup_difference, d.q_value as subgroup_q
    from estimates_for(run, 'code', null, 'before_prediction', false, split, class, 'all', null) e
    left join spikes t on t.code = e.code
    left join ranges r on r.code = e.code
    left join disagreement_for(run, 'code', split, class, subgroups, min_patients) d on d.code = e.code
    where e.n_patients >= min_patients::integer
),
judged as (
    select t.*, coalesce(t.spike >= spike::double, false) as spikes,
        coalesce(t.measured_share >= measured::double, false) as counts_for_being_measured,
        case when subgroups is not null
            then coalesce(t.subgroup_q <= false_discovery_rate::double, false) end as differs_by_subgroup
    from told t
)
select
    row_number() over (
        order by j.spikes::integer + j.counts_for_being_measured::integer + coalesce(j.differs_by_subgroup, false)::integer desc,
            j.mean_abs_per_prediction desc, j.code
    )::integer as rank,
    j.*
from judged j
qualify rank <= top::integer
order by rank;
