-- Which beginnings time is counted from: before the prediction, after an anchor, since a code's first record.
--
-- One row an axis: how many predictions lie on it (those that have the anchor, or the code), and its number of bins.
-- Arguments: split, run.
-- Example: whenwhy query STORE time_axes
create or replace temp macro time_axes(split := 'held_out', run := null) as table
select x.time_axis, max(x.n_predictions) filter (where x.time_bin is null) as n_predictions,
    (count(*) filter (where x.time_bin is not null))::integer as n_bins,
    min(x.low_hours) as low_hours, max(x.high_hours) as high_hours
from exposure x
where x.split = split and x.class = 'all' and x.stratum = 'all'
    and x.run_id = coalesce(run::varchar, (select min(run_id) from runs))
group by x.time_axis
order by x.time_axis;
