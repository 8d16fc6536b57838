-- How the explained score is distributed, by label: a histogram.
--
-- One row a label and bin, from the lowest score up: bins of equal width from the lowest to the highest score of all
-- labels together, low <= score < high, the last with its high; predictions and patients, and how many of them are marked,
-- null where none is or fewer patients than min_patients. Bins of nobody are no row.
-- Needs predictions: rows.duckdb alone has them, for analysts.
-- Arguments: split, class, stratum, cohort, a predicate over predictions; run; n_bins; min_patients (of a label in a
-- bin); marked, a predicate over predictions that tells which of them are marked, or null: none.
-- Example: whenwhy query STORE score_distribution n_bins=10
create or replace temp macro score_distribution(
    split := 'held_out', class := 'all', stratum := 'all', cohort := null, run := null, n_bins := 40, min_patients := 11,
    marked := null
) as table
with chosen as (select p.prediction_id from predictions_for(run, split, class, stratum, marked) p where marked is not null),
scored as (
    select p.subject_id, p.label, p.score, p.prediction_id in (select c.prediction_id from chosen c) as is_marked
    from predictions_for(run, split, class, stratum, cohort) p
),
span as (
    select min(s.score) as lowest, max(s.score) as highest, (max(s.score) - min(s.score)) / n_bins::integer as width
    from scored s
),
binned as (
    select s.subject_id, s.label, s.is_marked,
        case when w.width > 0 then least(floor((s.score - w.lowest) / w.width)::integer, n_bins::integer - 1) else 0 end
            as bin
    from scored s, span w
),
counted as (
    select b.label, b.bin, count(*) as n_predictions, count(distinct b.subject_id) as n_patients,
        count(*) filter (where b.is_marked) as n_marked, count(distinct b.subject_id) filter (where b.is_marked) as marked_patients
    from binned b group by all
)
select c.label, c.bin, w.lowest + c.bin * w.width as low,
    case when c.bin = n_bins::integer - 1 then w.highest else w.lowest + (c.bin + 1) * w.width end as high,
    c.n_predictions, c.n_patients,
    case when c.marked_patients >= min_patients::integer then c.n_marked end as n_marked_predictions,
    case when c.marked_patients >= min_patients::integer then c.marked_patients end as n_marked_patients
from counted c, span w
where c.n_patients >= min_patients::integer
order by c.label, c.bin;
