-- How far contributions of a feature spread in each time bin: their 10, 30, 50, 70 and 90 % percentiles.
--
-- One row a bin, nearest to the prediction first (and with level=value a row a range of values). Percentiles are of
-- events, interpolated within the buckets of the cells' histograms, each a quarter of an octave (19 %) wide.
-- Needs rows: single contributions show in percentiles, so rows.duckdb alone answers this, for analysts.
-- Arguments: feature, a code (or a code group with level=group); axis, of time (see time_axes); split, class, run,
-- min_patients.
-- Example: whenwhy query STORE percentile_bands feature=hdl
create or replace temp macro percentile_bands(
    feature, level := 'code', axis := 'before_prediction', split := 'held_out', class := 'all', run := null,
    min_patients := 11
) as table
with counted as (
    select c.feature_value_id, c.time_bin, c.low_hours, c.high_hours, c.n_patients, c.n_events,
        unnest(map_keys(c.histogram))::integer as bucket, unnest(map_values(c.histogram)) as n
    from cells c
    where c.level = level and c.code = feature and c.split = split and c.class = class and c.stratum = 'all'
        and c.run_id = coalesce(run::varchar, (select min(run_id) from runs))
        and c.time_axis = axis and c.time_bin is not null and c.n_patients >= min_patients::integer
),
edged as (
    select *, sum(n) over (partition by feature_value_id, time_bin order by bucket) as upto,
        case when bucket > 0 then pow(2, (bucket - 1) / 4.0) when bucket < 0 then -pow(2, -bucket / 4.0) else 0 end
            / 16777216 as least,
        case when bucket > 0 then pow(2, bucket / 4.0) when bucket < 0 then -pow(2, (-bucket - 1) / 4.0) else 0 end
            / 16777216 as most
    from counted
),
wanted as (
    select e.*, q.share, e.least + (e.most - e.least) * (q.share * e.n_events - (e.upto - e.n)) / e.n as percentile,
        row_number() over (partition by e.feature_value_id, e.time_bin, q.share order by e.bucket) as place
    from edged e, (values (0.1), (0.3), (0.5), (0.7), (0.9)) q(share)
    where e.upto >= q.share * e.n_events
)
select
    w.feature_value_id, w.time_bin, w.low_hours, w.high_hours, w.n_patients, w.n_events,
    max(w.percentile) filter (where w.share = 0.1) as p10, max(w.percentile) filter (where w.share = 0.3) as p30,
    max(w.percentile) filter (where w.share = 0.5) as p50, max(w.percentile) filter (where w.share = 0.7) as p70,
    max(w.percentile) filter (where w.share = 0.9) as p90
from wanted w
where w.place = 1
group by all
order by w.feature_value_id, w.time_bin;
