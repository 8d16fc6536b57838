-- Whether predicted probabilities come true: predictions in bins of equal count by their probability.
--
-- One row a bin, the least probable first: its least and greatest probability, predictions and patients, the mean
-- probability, and the share of predictions whose label is that class, with its 95 % interval. Equal probabilities lie in
-- one bin, so bins may be fewer and of unlike count where many are equal. The interval is Wilson's for n_effective
-- patients (all predictions squared over the sum of each patient's squared): it takes a patient's predictions to have one
-- label, so it is too wide where they have not, and holds for few patients and rare labels, where Student's t fails.
-- label is the class whose probability predictions tell: that of the run's target, or the later of two classes. No other
-- can be asked for, and a run of several classes whose target is a hidden unit tells none.
-- Needs predictions: rows.duckdb alone has them, for analysts.
-- Arguments: split, class, stratum, cohort, a predicate over predictions; run; label, or null: whichever it is; n_bins,
-- min_patients (in a bin).
-- Example: whenwhy query STORE calibration
create or replace temp macro calibration(
    split := 'held_out', class := 'all', stratum := 'all', cohort := null, run := null, label := null, n_bins := 10,
    min_patients := 11
) as table
with this as (
    select r.run_id, regexp_replace(r.target, '@-?[0-9]+$', '') as target from runs r
    where r.run_id = coalesce(run::varchar, (select min(run_id) from runs))
),
-- The later of two classes is predicted from one half on.
likely as (
    select max_by(p.predicted, p.probability) as most, max(p.probability) as probability,
        list_distinct(list(distinct p.label) || list(distinct p.predicted)) as classes
    from predictions p where p.run_id = (select t.run_id from this t)
),
told as (
    select case when t.target not like 'unit:%' and t.target like '%:%' then split_part(t.target, ':', 2)
        when len(l.classes) > 2 then error('Predictions of this run tell the probability of whatever class is '
            || 'predicted, not of one: explain a target such as logit:CLASS')
        when l.probability >= 0.5 then l.most
        else list_filter(l.classes, lambda one: one <> l.most)[1] end as name
    from this t, likely l
),
asked as (
    select case when label is null or label = t.name then t.name
        else error('The predictions of this run tell the probability of ' || t.name || ', not of ' || label) end as name
    from told t
),
binned as (
    select p.subject_id, p.probability, coalesce(p.label = (select a.name from asked a), false)::integer as is_observed,
        (rank() over (order by p.probability) - 1) * n_bins::integer // count(*) over () as bin
    from predictions_for(run, split, class, stratum, cohort) p
),
patients as (
    select b.bin, b.subject_id, min(b.probability) as low, max(b.probability) as high, sum(b.probability) as expected,
        sum(b.is_observed) as observed, count(*)::double as n
    from binned b group by all
),
bins as (
    select p.bin, min(p.low) as low, max(p.high) as high, sum(p.n)::bigint as n_predictions, count(*) as n_patients,
        sum(p.n) * sum(p.n) / sum(p.n * p.n) as n_effective, sum(p.expected) / sum(p.n) as mean_probability,
        sum(p.observed) / sum(p.n) as share
    from patients p group by p.bin
),
wilson as (
    select b.* replace ((row_number() over (order by b.bin))::integer as bin),
        (b.share + 1.92072941 / b.n_effective) / (1 + 3.84145882 / b.n_effective) as centre,
        1.959963985 / (1 + 3.84145882 / b.n_effective)
            * sqrt(b.share * (1 - b.share) / b.n_effective + 0.960364705 / (b.n_effective * b.n_effective)) as half
    from bins b
)
select
    w.bin, (select a.name from asked a) as label, w.low, w.high,
    w.n_predictions, w.n_patients, w.n_effective, w.mean_probability, w.share as observed_share,
    greatest(0, w.centre - w.half) as observed_share_low, least(1, w.centre + w.half) as observed_share_high
from wilson w
where w.n_patients >= min_patients::integer
order by w.bin;
