-- Which ranges a feature's numbers were cut into: one row a range low <= value < high, in original units.
--
-- bin is null where the feature was recorded without a number. Every range is listed, also those whose cells
-- are not shown; an edge is missing where it may not be shown.
-- Arguments: feature, a code; run.
-- Example: whenwhy query STORE feature_bins feature=hdl
create or replace temp macro feature_bins(feature, run := null) as table
select f.feature_value_id, f.bin, f.low, f.high, f.unit, f.description
from feature_values f
where f.code = feature and f.run_id = coalesce(run::varchar, (select min(run_id) from runs))
order by f.bin nulls first;
